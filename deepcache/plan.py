"""Plans: which steps of a generation are full, decided before the generation runs, and written as text or JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from deepcache.errors import DeepCacheError, shown
from deepcache.files import json_value, read_text, whole_file

MAX_POWER = 10
MOST_STEPS = 100_000  # of a generation: a hundred times the training timesteps of most models
IDLE = -1  # the branch at which no skip stays live: the kept feature is the U-Net's output, and a step runs no module
ORDERS = (0, 1, 2)
AUTO = "auto"  # the order follows from guidance and interval (`deepcache.cache.prediction.predictor`)
Order = int | Literal["auto"]
EVERY: tuple[Order, ...] = ("auto", *ORDERS)
DEFAULT_ORDER: Order = "auto"  # docs/prediction.md has what was measured
UNCACHED = "uncached"
GRAMMAR = (
    "uncached; uniform,interval=N[,shallow_every=M]; quadratic,num_full=K,center=C,power=P[,signed_root]; uniform and "
    "quadratic also take ,branch=B (-1: no stage runs) ,order=auto|0|1|2 ,last_step_full; or the path of a plan's JSON"
)
_POWER_DECREMENT = 0.02  # the released code lowers the power by this until the number of full steps fits
_JSON = "a plan's JSON"
_MOST_BYTES = 16 << 20  # of a plan's file; 100,000 full steps take less than 1 MB


@dataclass(frozen=True)
class CachePlan:
    """The full steps of a generation of `num_steps` U-Net calls; the other steps are shallow or idle.

    A shallow step runs the outermost stages around a predicted feature. An idle step runs nothing: the U-Net's output
    itself is predicted, from the outputs of the last steps that were not idle.

    Attributes:
        num_steps: T, from 1 to `MOST_STEPS`.
        full_steps: the full steps in ascending order; the first is 0 and all are below `num_steps`.
        branch: b; the skips 0..b stay live on a shallow step. At -1 none is, so that every step but full ones is idle.
        order: how a feature or an output is predicted (`deepcache.cache.prediction`): 0 reuses the last one, as in the
            paper; 1 and 2 extrapolate; "auto" (the default) takes what is safe for the interval and the guidance.
        idle_steps: with a branch of at least 0, the idle steps in ascending order; the steps left over are shallow.
    """

    num_steps: int
    full_steps: tuple[int, ...]
    branch: int = 0
    order: Order = DEFAULT_ORDER
    idle_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        num_steps = require_whole("num_steps", self.num_steps, at_least=1, at_most=MOST_STEPS)
        _require_step(self)
        steps, idle = (_steps(name, getattr(self, name)) for name in ("full_steps", "idle_steps"))
        vars(self).update(num_steps=num_steps, full_steps=steps, idle_steps=idle)
        if not steps or steps[0] != 0 or list(steps) != sorted(set(steps)) or steps[-1] >= self.num_steps:
            raise DeepCacheError(
                f"expected ascending full steps that begin with 0 and stay below num_steps = {self.num_steps}, "
                f"got {shown(steps)}; deepcache.uniform and deepcache.quadratic make such plans"
            )
        if idle and (list(idle) != sorted(set(idle) - set(steps)) or idle[-1] >= num_steps or self.branch == IDLE):
            raise DeepCacheError(
                f"expected ascending idle steps that are not full and stay below num_steps = {num_steps}, and none at "
                f"branch {IDLE}, where every step that is not full is idle; got {shown(idle)} at branch {self.branch}"
            )

    @property
    def num_full(self) -> int:
        """The number of full steps."""
        return len(self.full_steps)

    @property
    def num_idle(self) -> int:
        """The number of steps that run nothing."""
        return self.num_steps - self.num_full if self.branch == IDLE else len(self.idle_steps)

    @property
    def num_shallow(self) -> int:
        """The number of steps that run the outermost stages alone."""
        return self.num_steps - self.num_full - self.num_idle

    @property
    def has_idle_steps(self) -> bool:
        """True where some steps are idle: the cache then keeps the last outputs to predict from."""
        return self.branch == IDLE or bool(self.idle_steps)

    def is_full(self, step: int, num_steps: int | None = None) -> bool:  # noqa: ARG002 (as `Interval.is_full`)
        """Return whether a step runs the whole U-Net."""
        return step in self.full_steps

    def is_idle(self, step: int) -> bool:
        """Return whether a step that is not full runs nothing."""
        return self.branch == IDLE or step in self.idle_steps

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file, for `CachePlan.load` and for every `--plan` of the command line."""
        with whole_file(Path(path)) as file:
            file.write(self.to_json().encode() + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the plan in a JSON file that `save` wrote."""
        return cls.from_json(read_text(path, _JSON, most_bytes=_MOST_BYTES), str(path))

    def to_json(self) -> str:
        """Return the plan as one line of JSON."""
        return json.dumps(told(self))

    @classmethod
    def from_json(cls, text: str, source: str = "the text") -> Self:
        """Return the plan that `to_json` wrote; an error message names the `source` of the text."""
        found = json_value(text, _JSON, source)
        known = {field.name for field in fields(cls)}
        if not isinstance(found, dict) or not {"num_steps", "full_steps"} <= found.keys() <= known:
            raise DeepCacheError(f"expected {_JSON} in {source}, with {', '.join(sorted(known))}")
        return cls(**found)


@dataclass(frozen=True)
class Interval:
    """The rule that steps 0, N, 2N, ... are full; it makes a plan for a generation of any length.

    Attributes:
        interval: N, at least 1; 1 caches nothing.
        branch, order: as in `CachePlan`.
        last_step_full: whether the last step is full as well; this needs a known number of steps.
    """

    interval: int
    branch: int = 0
    order: Order = DEFAULT_ORDER
    last_step_full: bool = False

    def __post_init__(self) -> None:
        vars(self).update(interval=require_whole("interval", self.interval, at_least=1))
        _require_step(self)

    def is_full(self, step: int, num_steps: int | None = None) -> bool:
        """Return whether a step is full in a generation of `num_steps` steps, or of an unknown number of steps."""
        return step % self.interval == 0 or (self.last_step_full and step + 1 == num_steps)

    @property
    def has_idle_steps(self) -> bool:
        """True where some steps are idle: the cache then keeps the last outputs to predict from."""
        return self.branch == IDLE

    def is_idle(self, step: int) -> bool:  # noqa: ARG002 (as `CachePlan.is_idle`)
        """Return whether a step that is not full runs nothing."""
        return self.branch == IDLE


def told(plan: CachePlan | Interval) -> dict[str, Any]:
    """Return a plan's attributes by name; `idle_steps` is left out if empty, as in files of earlier versions."""
    return {name: value for name, value in asdict(plan).items() if name != "idle_steps" or value}


def uniform(
    num_steps: int,
    interval: int,
    branch: int = 0,
    order: Order = DEFAULT_ORDER,
    *,
    last_step_full: bool = False,
    shallow_every: int = 1,
) -> CachePlan:
    """Return the plan with full steps 0, N, 2N, ...: ceil(T / N) of T steps.

    Args:
        num_steps: T, from 1 to `MOST_STEPS`.
        interval: N, at least 1; 1 caches nothing.
        branch, order: as in `CachePlan`.
        last_step_full: whether step T - 1 is full as well.
        shallow_every: M, at least 1: every M-th step after a full step is shallow, and the steps between are idle.
    """
    require_whole("num_steps", num_steps, at_least=1, at_most=MOST_STEPS)
    require_whole("shallow_every", shallow_every, at_least=1)
    every = Interval(interval, branch, order, last_step_full)
    is_full = [every.is_full(step, num_steps) for step in range(num_steps)]
    full_steps = tuple(step for step in range(num_steps) if is_full[step])
    others = (step for step in range(num_steps) if not is_full[step] and branch != IDLE)
    idle_steps = tuple(step for step in others if step % interval % shallow_every)
    return CachePlan(num_steps, full_steps, branch, order, idle_steps)


def quadratic(
    num_steps: int,
    num_full: int,
    center: float,
    power: float,
    branch: int = 0,
    order: Order = DEFAULT_ORDER,
    *,
    signed_root: bool = False,
    last_step_full: bool = False,
) -> CachePlan:
    """Return the plan whose full steps are dense around `center` (the paper's equation 7).

    `num_full` + 1 points, evenly spaced in (-c)^(1/p) .. (T - c)^(1/p), are raised to the power p, truncated and moved
    by c. Where points fall together, p is lowered by 0.02 until `num_full` different steps remain.

    Args:
        num_steps: T, from 1 to `MOST_STEPS`.
        num_full: the number of full steps, from 1 to T.
        center: c, from 0 to T.
        power: p, above 1 and at most 10; the paper uses 1.2 to 1.6.
        branch, order: as in `CachePlan`.
        signed_root: how to take the root of the negative number -c. False, as in the released code, takes the real
            part of points on the principal complex root; True takes -(c^(1/p)).
        last_step_full: whether step T - 1 is full as well; it then comes on top of `num_full` other steps.

    Raises:
        DeepCacheError: an argument is out of its range, or no power down to 1 gives `num_full` different steps.

    References:
        DeepCache: Accelerating Diffusion Models for Free (Ma et al., 2024), https://arxiv.org/abs/2312.00858
    """
    require_whole("num_steps", num_steps, at_least=1, at_most=MOST_STEPS)
    require_whole("num_full", num_full, at_least=1)
    center, power = require_number("center", center), require_number("power", power)
    if num_full > num_steps or not 0 <= center <= num_steps or not 1 < power <= MAX_POWER:
        raise DeepCacheError(
            f"expected num_full <= num_steps, 0 <= center <= num_steps and 1 < power <= {MAX_POWER}, "
            f"got num_full {num_full}, num_steps {num_steps}, center {center}, power {power}"
        )
    lowered = power
    while lowered > 1:
        steps = _quadratic_steps(num_steps, num_full, center, lowered, signed_root=signed_root)
        if len(set(steps)) == num_full and steps[-1] < num_steps:  # adding c may round two of them to one
            last = (num_steps - 1,) if last_step_full and steps[-1] < num_steps - 1 else ()
            return CachePlan(num_steps, steps + last, branch, order)
        lowered -= _POWER_DECREMENT
    raise DeepCacheError(
        f"no power from {power} down to 1 gives {num_full} different full steps of {num_steps} around {center}; "
        "take fewer full steps, a higher power, or deepcache.uniform"
    )


def _quadratic_steps(
    num_steps: int, num_full: int, center: float, power: float, *, signed_root: bool
) -> tuple[int, ...]:
    last = (num_steps - center) ** (1 / power)
    if signed_root:
        roots = np.linspace(-(center ** (1 / power)), last, num_full + 1)
        offsets = np.trunc(np.sign(roots) * np.abs(roots) ** power)
    else:
        points = np.linspace(complex(-center) ** (1 / power), last, num_full + 1)
        offsets = np.trunc((points**power).real)
    return (0, *(int(offset + center) for offset in np.unique(offsets)[1:-1]))


_KINDS: dict[str, Callable[..., CachePlan]] = {"uniform": uniform, "quadratic": quadratic}
_REQUIRED = {"uniform": {"interval"}, "quadratic": {"num_full", "center", "power"}}
_OPTIONAL = {"uniform": {"last_step_full", "shallow_every"}, "quadratic": {"last_step_full", "signed_root"}}
_FLAGS, _DECIMALS = {"last_step_full", "signed_root"}, {"center", "power"}


def parse_plan(text: str, num_steps: int) -> CachePlan | None:
    """Return the plan that `text` describes (see `GRAMMAR`) or names as a JSON file; None for "uncached".

        parse_plan("uniform,interval=3,branch=0,order=1", 50)  # for 50 U-Net calls

    Raises:
        DeepCacheError: the text does not follow `GRAMMAR`, or the file's plan has another number of steps.
    """
    kind, *words = [word.strip() for word in text.split(",")]
    if text == UNCACHED:
        return None
    if kind in _KINDS:
        return _KINDS[kind](num_steps, **_arguments(kind, words, text))
    if not os.path.isfile(text):  # Path.is_file raises on a text that is too long for a name
        raise DeepCacheError(f"expected a plan ({GRAMMAR}), got {shown(text)}, which is no plan and no file")
    plan = CachePlan.load(text)
    if plan.num_steps != num_steps:
        raise DeepCacheError(f"expected a plan of {num_steps} U-Net calls, got one of {plan.num_steps} in {text}")
    return plan


def _arguments(kind: str, words: list[str], text: str) -> dict[str, Any]:
    found = dict(_argument(word, text) for word in words)
    required, optional = _REQUIRED[kind], _OPTIONAL[kind] | {"branch", "order"}
    if not required <= found.keys() <= required | optional or len(found) < len(words):
        raise DeepCacheError(
            f"expected {kind} with {', '.join(sorted(required))}, and if wanted {', '.join(sorted(optional))}, "
            f"each once; got {shown(text)}"
        )
    return found


def _argument(word: str, text: str) -> tuple[str, Any]:
    name, _, value = word.partition("=")
    if word in _FLAGS:
        return name, True
    if name in _DECIMALS and re.fullmatch(r"\d{1,18}(\.\d+)?", value):
        return name, float(value)
    if name == "order" and value == AUTO:
        return name, value
    if name not in _FLAGS and re.fullmatch(rf"\d{{1,18}}|{IDLE}", value):
        return name, int(value)
    raise DeepCacheError(f"expected a plan ({GRAMMAR}), got {shown(word)} in {shown(text)}")


def _require_step(plan: CachePlan | Interval) -> None:
    """Check the branch and the order of a plan, and store both as plain values."""
    vars(plan).update(branch=require_whole("branch", plan.branch, at_least=IDLE), order=require_order(plan.order))


def _steps(name: str, found: object) -> tuple[int, ...]:
    if not isinstance(found, (tuple, list, range)):
        raise DeepCacheError(f"expected {name} to be a tuple of steps, got {shown(found)}")
    return tuple(require_whole(f"an element of {name}", step, at_least=0) for step in found)


def highest(order: Order) -> int:
    """Return the highest polynomial degree that an order may use; at most one feature more is kept."""
    return max(ORDERS) if order == "auto" else order


def require_order(order: object) -> Order:
    """Return the order of the prediction, or raise a `DeepCacheError` if it is neither "auto" nor one of `ORDERS`."""
    if isinstance(order, str) and order == AUTO:  # an array would compare each of its elements
        return "auto"
    if isinstance(order, bool) or not isinstance(order, (int, np.integer)) or order not in ORDERS:
        known = ", ".join(map(str, ORDERS))
        raise DeepCacheError(f"expected order to be {AUTO!r} or one of {known}, got {shown(order)}")
    return int(order)


def require_number(name: str, value: object) -> float:
    """Return a value as a float, or raise a `DeepCacheError`; NaN and infinity are numbers, too."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value)
    raise DeepCacheError(f"expected {name} to be a number, got {shown(value)}")


def require_whole(name: str, value: object, *, at_least: int, at_most: int | None = None) -> int:
    """Return a value as an int, or raise a `DeepCacheError` if it is no whole number or is out of bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < at_least:
        raise DeepCacheError(f"expected {name} to be a whole number of at least {at_least}, got {shown(value)}")
    if at_most is not None and value > at_most:
        raise DeepCacheError(f"expected {name} to be at most {at_most:,}, got {shown(value)}; take fewer")
    return int(value)

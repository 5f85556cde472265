"""Plans: which steps of a generation are full, decided before the generation runs, and written as text or JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from deepcache.errors import DeepCacheError, shown
from deepcache.files import json_value, read_text, whole_file

MAX_POWER = 10
MOST_STEPS = 100_000  # of a generation: a hundred times the training timesteps of most models
ORDERS = (0, 1, 2)
DEFAULT_ORDER = 1  # beats reuse in nearly all panels of the Pareto bench at N = 2, 3 and 5 (docs/plans.md)
UNCACHED = "uncached"
GRAMMAR = (
    "uncached; uniform,interval=N; quadratic,num_full=K,center=C,power=P; "
    "the last two with ,branch=B ,order=0|1|2 ,last_step_full; or a plan's JSON file"
)
_POWER_DECREMENT = 0.02  # the released code lowers the power by this until the number of full steps fits
_JSON = "a plan's JSON"
_MOST_BYTES = 16 << 20  # of a plan's file: a million full steps


@dataclass(frozen=True)
class CachePlan:
    """The full steps of a generation of `num_steps` U-Net calls; all other steps are shallow.

    Attributes:
        num_steps: T, from 1 to `MOST_STEPS`.
        full_steps: the full steps in ascending order; the first is 0 and all are below `num_steps`.
        branch: b, at least 0; the skips 0..b stay live on a shallow step.
        order: how a shallow step predicts its feature (`deepcache.cache.prediction`): 0 reuses the last feature, as in
            the paper; 1 (the default) and 2 extrapolate from the last two or three features.
    """

    num_steps: int
    full_steps: tuple[int, ...]
    branch: int = 0
    order: int = DEFAULT_ORDER

    def __post_init__(self) -> None:
        num_steps = require_whole("num_steps", self.num_steps, at_least=1, at_most=MOST_STEPS)
        _require_step(self)
        if not isinstance(self.full_steps, (tuple, list, range)):
            raise DeepCacheError(f"expected full_steps to be a tuple of steps, got {shown(self.full_steps)}")
        steps = tuple(require_whole("a full step", step, at_least=0) for step in self.full_steps)
        vars(self).update(num_steps=num_steps, full_steps=steps)
        if not steps or steps[0] != 0 or list(steps) != sorted(set(steps)) or steps[-1] >= self.num_steps:
            raise DeepCacheError(
                f"expected ascending full steps that begin with 0 and stay below num_steps = {self.num_steps}, "
                f"got {shown(steps)}; deepcache.uniform and deepcache.quadratic make such plans"
            )

    @property
    def num_full(self) -> int:
        return len(self.full_steps)

    def is_full(self, step: int, num_steps: int | None = None) -> bool:  # noqa: ARG002 (as `Interval.is_full`)
        return step in self.full_steps

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
        return json.dumps(asdict(self))

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
    order: int = DEFAULT_ORDER
    last_step_full: bool = False

    def __post_init__(self) -> None:
        vars(self).update(interval=require_whole("interval", self.interval, at_least=1))
        _require_step(self)

    def is_full(self, step: int, num_steps: int | None = None) -> bool:
        """Return whether a step is full in a generation of `num_steps` steps, or of an unknown number of steps."""
        return step % self.interval == 0 or (self.last_step_full and step + 1 == num_steps)


def uniform(
    num_steps: int, interval: int, branch: int = 0, order: int = DEFAULT_ORDER, *, last_step_full: bool = False
) -> CachePlan:
    """Return the plan with full steps 0, N, 2N, ...: ceil(T / N) of T steps.

    Args:
        num_steps: T, from 1 to `MOST_STEPS`.
        interval: N, at least 1; 1 caches nothing.
        branch, order: as in `CachePlan`.
        last_step_full: whether step T - 1 is full as well.
    """
    require_whole("num_steps", num_steps, at_least=1, at_most=MOST_STEPS)
    every = Interval(interval, branch, order, last_step_full)
    full_steps = tuple(step for step in range(num_steps) if every.is_full(step, num_steps))
    return CachePlan(num_steps, full_steps, branch, order)


def quadratic(
    num_steps: int,
    num_full: int,
    center: float,
    power: float,
    branch: int = 0,
    order: int = DEFAULT_ORDER,
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
        if len(steps) == num_full and steps[-1] < num_steps:
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
_OPTIONAL = {"uniform": {"last_step_full"}, "quadratic": {"last_step_full", "signed_root"}}
_FLAGS = {"last_step_full", "signed_root"}
_DECIMALS = {"center", "power"}


def parse_plan(text: str, num_steps: int) -> CachePlan | None:
    """Return the plan that a text of `GRAMMAR` describes, or that is in the file that it names; None for "uncached".

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
        raise DeepCacheError(f"expected a plan ({GRAMMAR}), got {shown(text)}, which is neither")
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
    if name not in _FLAGS and re.fullmatch(r"\d{1,18}", value):
        return name, int(value)
    raise DeepCacheError(f"expected a plan ({GRAMMAR}), got {shown(word)} in {shown(text)}")


def _require_step(plan: CachePlan | Interval) -> None:
    """Require the branch and the order of a plan, which tell how its shallow steps run."""
    vars(plan).update(branch=require_whole("branch", plan.branch, at_least=0), order=require_order(plan.order))


def require_order(order: object) -> int:
    """Return the order of the prediction as an int, or raise a `DeepCacheError` if it is none of `ORDERS`."""
    if isinstance(order, bool) or not isinstance(order, (int, np.integer)) or order not in ORDERS:
        raise DeepCacheError(f"expected order to be one of {', '.join(map(str, ORDERS))}, got {shown(order)}")
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

"""Which steps of a generation are full, decided before it runs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from deepcache.errors import DeepCacheError, shown

MAX_POWER = 10
MOST_STEPS = 100_000  # of a generation; a hundred times the training timesteps of most models
ORDERS = (0, 1, 2)
DEFAULT_ORDER = 1  # nearer than reuse in nearly all panels of the Pareto bench at N = 2, 3 and 5 (docs/plans.md)
_POWER_DECREMENT = 0.02  # the released code's, taken off the power until the number of full steps fits


@dataclass(frozen=True)
class CachePlan:
    """The full steps of a generation of `num_steps` U-Net calls; all others are shallow.

    Attributes:
        num_steps: T, 1 to `MOST_STEPS`.
        full_steps: ascending, from 0, all below `num_steps`.
        branch: the skips 0..branch stay live on a shallow step.
        order: 0 reuses the last feature, as in the paper; 1, taken if not given, and 2 predict it from the last two and
            three (`deepcache.cache.prediction`).

    Raises:
        DeepCacheError: one of these does not hold.
    """

    num_steps: int
    full_steps: tuple[int, ...]
    branch: int = 0
    order: int = DEFAULT_ORDER

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "num_steps", require_whole("num_steps", self.num_steps, at_least=1, at_most=MOST_STEPS)
        )
        object.__setattr__(self, "branch", require_whole("branch", self.branch, at_least=0))
        object.__setattr__(self, "order", require_order(self.order))
        if not isinstance(self.full_steps, (tuple, list, range)):
            raise DeepCacheError(f"expected full_steps to be a tuple of steps, got {shown(self.full_steps)}")
        steps = tuple(require_whole("a full step", step, at_least=0) for step in self.full_steps)
        object.__setattr__(self, "full_steps", steps)
        if not steps or steps[0] != 0 or list(steps) != sorted(set(steps)) or steps[-1] >= self.num_steps:
            raise DeepCacheError(
                f"expected ascending full steps that begin with 0 and stay below num_steps = {self.num_steps}, "
                f"got {shown(steps)}; deepcache.uniform and deepcache.quadratic make such plans"
            )

    @property
    def num_full(self) -> int:
        return len(self.full_steps)

    def is_full(self, step: int, num_steps: int | None = None) -> bool:  # noqa: ARG002 (as of `Interval`)
        return step in self.full_steps


@dataclass(frozen=True)
class Interval:
    """Steps 0, N, 2N, ... are full, of a generation of any length; branch and order as in `CachePlan`.

    Attributes:
        interval: N, at least 1; 1 caches nothing.
        last_step_full: so is the last step, where the number of steps is known.

    Raises:
        DeepCacheError: one of these does not hold.
    """

    interval: int
    branch: int = 0
    order: int = DEFAULT_ORDER
    last_step_full: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", require_whole("interval", self.interval, at_least=1))
        object.__setattr__(self, "branch", require_whole("branch", self.branch, at_least=0))
        object.__setattr__(self, "order", require_order(self.order))

    def is_full(self, step: int, num_steps: int | None = None) -> bool:
        """Whether a step is full, of `num_steps` or of a number that is not known."""
        return step % self.interval == 0 or (self.last_step_full and step + 1 == num_steps)


def uniform(
    num_steps: int, interval: int, branch: int = 0, order: int = DEFAULT_ORDER, *, last_step_full: bool = False
) -> CachePlan:
    """Full steps 0, N, 2N, ...: ceil(T / N) of T, and the last one if asked.

    Args:
        num_steps: T, 1 to `MOST_STEPS`.
        interval: N, at least 1; 1 caches nothing.
        branch, order: as in `CachePlan`.
        last_step_full: step T - 1 is full, too.
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
    """Full steps dense around `center` (the paper's equation 7).

    `num_full` + 1 points evenly spaced in (-c)^(1/p) .. (T - c)^(1/p) are raised to p, truncated and moved by
    c. Where they fall together, p is lowered by 0.02 until `num_full` different steps remain.

    Args:
        num_steps: T, 1 to `MOST_STEPS`.
        num_full: how many steps are full, 1 .. T.
        center: c, in 0..T.
        power: p, above 1 and at most 10 (the paper uses 1.2 to 1.6).
        branch, order: as in `CachePlan`.
        signed_root: how to read the root of the negative number -c. False, as in the released code: the
            principal complex root, of whose points the real parts count. True: -(c^(1/p)).
        last_step_full: step T - 1 is full, too; beyond `num_full` where it was not among them.

    Raises:
        DeepCacheError: an argument out of range, or no power down to 1 gives `num_full` different steps.

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


def require_order(order: object) -> int:
    """The order of the prediction as an int; refuse one that there is not."""
    if isinstance(order, bool) or not isinstance(order, (int, np.integer)) or order not in ORDERS:
        raise DeepCacheError(f"expected order to be one of {', '.join(map(str, ORDERS))}, got {shown(order)}")
    return int(order)


def require_number(name: str, value: object) -> float:
    """The value as a float; refuse anything but a real number that a float holds, NaN and infinity among them."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value)
    raise DeepCacheError(f"expected {name} to be a number, got {shown(value)}")


def require_whole(name: str, value: object, *, at_least: int, at_most: int | None = None) -> int:
    """The value as an int; refuse anything but a whole number within the bounds.

    Raises:
        DeepCacheError: no whole number, or one out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < at_least:
        raise DeepCacheError(f"expected {name} to be a whole number of at least {at_least}, got {shown(value)}")
    if at_most is not None and value > at_most:
        raise DeepCacheError(f"expected {name} to be at most {at_most:,}, got {shown(value)}; take fewer")
    return int(value)

"""Budgets: what a plan may cost or lose, and whether some seeds show that the plan keeps to that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError
from deepcache.metrics.statistics import TAIL, bootstrap

SPEEDUP = "speedup"


@dataclass(frozen=True)
class Fidelity:
    """How one number over all seeds is made from a value a seed.

    Attributes:
        title: name and unit.
        digits: digits that are printed after the point.
        statistic: median or mean, over the last axis.
        is_higher_better: whether higher values are better.
    """

    title: str
    digits: int
    statistic: Callable[..., NDArray[np.float64]]
    is_higher_better: bool


# Distances between images take the median: one seed of some thirty that tips over to another image dominates the mean,
# so that few seeds cannot promise the mean. CLIP scores take the mean, as in the paper.
FIDELITIES = {
    "psnr_db": Fidelity("PSNR, median seed (dB)", 1, np.median, is_higher_better=True),
    "perceptual": Fidelity("perceptual distance, median seed", 4, np.median, is_higher_better=False),
    "clip_loss": Fidelity("CLIP score lost, mean", 2, np.mean, is_higher_better=False),
}


@dataclass(frozen=True)
class Estimate:
    """A fidelity from some seeds; over all seeds it lies in `low`..`high`, but for a tail at each end."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Budget:
    """One limit to keep to.

    Attributes:
        kind: "speedup", uncached over cached MACs of a sample, or a key of `FIDELITIES`.
        limit: the least speedup, above 1, or the worst fidelity, above 0.

    Raises:
        DeepCacheError: there is no such kind, or the limit is out of range.
    """

    kind: str
    limit: float

    def __post_init__(self) -> None:
        if self.kind not in (SPEEDUP, *FIDELITIES):
            raise DeepCacheError(f"expected a budget of {SPEEDUP}, {', '.join(FIDELITIES)}; got {self.kind!r}")
        least = 1.0 if self.kind == SPEEDUP else 0.0
        if isinstance(self.limit, bool) or not isinstance(self.limit, (int, float)) or not self.limit > least:
            raise DeepCacheError(f"expected {self.kind} to be a number above {least:g}, got {self.limit!r}")

    @property
    def fidelity(self) -> str:
        """The fidelity that is measured: the budget's own kind, or PSNR where the budget is a speedup."""
        return "psnr_db" if self.kind == SPEEDUP else self.kind

    def holds(self, found: Estimate) -> bool:
        """Return whether the worse end of an estimate keeps to the limit."""
        return found.low >= self.limit if FIDELITIES[self.kind].is_higher_better else found.high <= self.limit


def budget_of(**limits: float | None) -> Budget:
    """Return the budget of the one limit that is not None.

    Raises:
        DeepCacheError: no limit is given, or several are.
    """
    given = {kind: limit for kind, limit in limits.items() if limit is not None}
    if len(given) != 1:
        raise DeepCacheError(f"expected one budget out of {', '.join(limits)}; got {', '.join(given) or 'none'}")
    return Budget(*given.popitem())


def estimate(fidelity: str, values: NDArray[np.float64], tail: float = TAIL) -> Estimate:
    """Return a fidelity over seeds with its bootstrap interval.

    Args:
        fidelity: a key of `FIDELITIES`.
        values: a value for each seed, (B,).
        tail: probability beyond each end of the interval.
    """
    statistic = FIDELITIES[fidelity].statistic
    return Estimate(float(statistic(values)), *bootstrap(statistic, values, tail))

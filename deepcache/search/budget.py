"""What a plan may cost or lose, and whether some seeds show that it keeps to that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError
from deepcache.metrics.bootstrap import TAIL, bootstrap

SPEEDUP = "speedup"


@dataclass(frozen=True)
class Measure:
    """A figure over seeds, of a value a seed.

    Attributes:
        title: with its unit.
        digits: printed after the point.
        statistic: over the last axis.
        is_higher_better: or lower is.
    """

    title: str
    digits: int
    statistic: Callable[..., NDArray[np.float64]]
    is_higher_better: bool


# Of distances between images the median: a seed that tips over to another image, one of some thirty, rules their mean,
# and so few seeds cannot promise it. A CLIP score is one of all images, as in the paper.
MEASURES = {
    "psnr_db": Measure("PSNR, median seed (dB)", 1, np.median, is_higher_better=True),
    "perceptual": Measure("perceptual distance, median seed", 4, np.median, is_higher_better=False),
    "clip_loss": Measure("CLIP score lost, mean", 2, np.mean, is_higher_better=False),
}


@dataclass(frozen=True)
class Estimate:
    """Of a measure from some seeds: `low`..`high` is where that of all seeds lies, but for a tail at either end."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Budget:
    """One limit: a `speedup` to reach (uncached over cached MACs of a sample), or one of `MEASURES` to keep to.

    Raises:
        DeepCacheError: no such limit, or a value that none can be.
    """

    kind: str
    limit: float

    def __post_init__(self) -> None:
        if self.kind not in (SPEEDUP, *MEASURES):
            raise DeepCacheError(f"expected a budget of {SPEEDUP}, {', '.join(MEASURES)}; got {self.kind!r}")
        least = 1.0 if self.kind == SPEEDUP else 0.0
        if isinstance(self.limit, bool) or not isinstance(self.limit, (int, float)) or not self.limit > least:
            raise DeepCacheError(f"expected {self.kind} to be a number above {least:g}, got {self.limit!r}")

    @property
    def measure(self) -> str:
        """What is measured: the budget's own, and PSNR where speed is asked for."""
        return "psnr_db" if self.kind == SPEEDUP else self.kind

    def holds(self, found: Estimate) -> bool:
        """Whether the worse end of the interval keeps to the limit."""
        return found.low >= self.limit if MEASURES[self.kind].is_higher_better else found.high <= self.limit


def budget_of(**limits: float | None) -> Budget:
    """The one limit that is given.

    Raises:
        DeepCacheError: none is, or several are.
    """
    given = {kind: limit for kind, limit in limits.items() if limit is not None}
    if len(given) != 1:
        raise DeepCacheError(f"expected one budget out of {', '.join(limits)}; got {', '.join(given) or 'none'}")
    return Budget(*given.popitem())


def estimate(measure: str, values: NDArray[np.float64], tail: float = TAIL) -> Estimate:
    """From a value a seed, (B,), with the ends of its bootstrap interval."""
    statistic = MEASURES[measure].statistic
    return Estimate(float(statistic(values)), *bootstrap(statistic, values, tail))

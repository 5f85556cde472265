"""Statistics in numpy alone, since the gate loads no torch: those of images, batch by batch, and the bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import reduce
from math import ceil

import numpy as np
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError

SPLIT = 5_000  # images in a part of the Inception score, as in the ADM suite
TAIL = 0.025  # the share of resamples that a 95 % interval leaves out at either end
_AT_ONCE = 2_000  # features that are float64 at once
_ROOM = 4_096  # features for which memory is reserved at first
_RESAMPLES = 2_000  # drawn at least
_BEYOND = 20  # resamples that lie beyond either end, at least
_CELLS = 1_000_000  # values that are resampled at once
Array = NDArray[np.floating]
Flags = NDArray[np.bool_]
Statistic = Callable[..., NDArray[np.float64]]  # takes values and the axis over which it is worked out


@dataclass(frozen=True, eq=False)
class Features:
    """The features of B images: `pooled` (B, D), `spatial` (B, S), and class `probabilities` (B, K), all float32."""

    pooled: NDArray[np.float32]
    spatial: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    def first(self, count: int) -> Features:
        return Features(*(getattr(self, field.name)[:count] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class Moments:
    """The `mean` (D,) and the unbiased `covariance` (D, D) of features, float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RunningMoments:
    """The `mean` (D,) of `count` features and their `scatter` (D, D), the sum of squares about the mean.

    Parts are joined about their own means, so that nothing cancels (Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances, Chan et al., 1979):

        S = S_a + S_b + n_a n_b / (n_a + n_b) (m_b - m_a) (m_b - m_a)^T
    """

    count: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @classmethod
    def of(cls, features: Array) -> RunningMoments:
        """The moments of finite features (B, D), B at least 1, worked out in float64."""
        if features.ndim != 2 or len(features) == 0:
            raise DeepCacheError(f"expected features (B, D) of samples, got shape {features.shape}")
        if len(features) > _AT_ONCE:
            return reduce(cls.merge, map(cls.of, np.split(features, range(_AT_ONCE, len(features), _AT_ONCE))))
        exact = np.asarray(features, np.float64)
        mean = exact.mean(axis=0)
        if not np.isfinite(mean).all():
            raise DeepCacheError("expected finite features, got NaN or infinity; are the images finite?")
        centered = exact - mean
        return cls(len(exact), mean, centered.T @ centered)

    def merge(self, other: RunningMoments) -> RunningMoments:
        if self.count == 0:
            return other
        if self.mean.shape != other.mean.shape:
            raise DeepCacheError(f"expected features of one length, got {self.mean.size} and {other.mean.size}")
        count = self.count + other.count
        between = other.mean - self.mean
        apart = np.outer(between, between * (self.count * other.count / count))
        return RunningMoments(count, self.mean + between * (other.count / count), self.scatter + other.scatter + apart)

    def moments(self) -> Moments:
        """The mean and the covariance of at least two features."""
        if self.count < 2:
            raise DeepCacheError(f"expected features (B, D) of at least 2 samples, got {self.count}")
        return Moments(self.mean, self.scatter / (self.count - 1))


NOTHING = RunningMoments(0, np.zeros(0), np.zeros((0, 0)))


@dataclass
class Spread:
    """The sums that the Inception score of a part needs, over `count` images: of p (K,), and of p log p."""

    count: int
    total: NDArray[np.float64]
    entropy: float

    @property
    def score(self) -> float:
        """The exponential of the mean KL(p(y|x) || p(y))."""
        return float(np.exp(self.entropy / self.count - _plogp(self.total / self.count)))


@dataclass(eq=False)
class Statistics:
    """The statistics of images whose features come in batches, in memory that grows with the kept features alone."""

    chosen: Flags | None = None  # flags of the images whose pooled features are kept; None to keep all
    split: int = SPLIT  # images in a part of the Inception score; the last part may be smaller
    count: int = 0  # images so far
    pooled: RunningMoments = NOTHING
    spatial: RunningMoments = NOTHING
    spreads: list[Spread] = field(default_factory=list)  # of the parts of the Inception score
    _num_kept: int = 0
    _kept: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 1), np.float32))

    @classmethod
    def of(cls, batches: Iterable[Features], *, chosen: Flags | None = None, split: int = SPLIT) -> Statistics:
        found = cls(chosen, split)
        for batch in batches:
            found.update(batch)
        return found

    def update(self, features: Features) -> None:
        self.pooled = self.pooled.merge(RunningMoments.of(features.pooled))
        self.spatial = self.spatial.merge(RunningMoments.of(features.spatial))
        self._spread(features.probabilities)
        end = self.count + len(features.pooled)
        self._keep(features.pooled if self.chosen is None else features.pooled[self.chosen[self.count : end]])
        self.count = end

    @property
    def features(self) -> NDArray[np.float32]:
        """The pooled features (M, D) of the chosen images."""
        return self._kept[: self._num_kept]

    @property
    def inception_score(self) -> float:
        """The mean score of the parts."""
        return float(np.mean([spread.score for spread in self.spreads]))

    def _keep(self, features: NDArray[np.float32]) -> None:
        """Append features; the array grows by doubling, since an array a batch would fragment the heap."""
        before, end = self._num_kept, self._num_kept + len(features)
        if end > len(self._kept):
            grown = np.empty((max(end, 2 * before, _ROOM), features.shape[1]), np.float32)
            grown[:before] = self._kept[:before]
            self._kept = grown
        self._kept[before:end] = features
        self._num_kept = end

    def _spread(self, probabilities: NDArray[np.float32]) -> None:
        while len(probabilities):
            if not self.spreads or self.spreads[-1].count == self.split:
                self.spreads.append(Spread(0, np.zeros(probabilities.shape[1]), 0.0))
            spread = self.spreads[-1]
            part = probabilities[: min(self.split - spread.count, _AT_ONCE)].astype(np.float64)
            spread.count += len(part)
            spread.total += part.sum(axis=0)
            spread.entropy += _plogp(part)
            probabilities = probabilities[len(part) :]


def drawn(count: int, num_features: int | None) -> Flags | None:
    """Draw, with a fixed random seed, `num_features` of `count` images: a flag for each image, or None for all.

    The first images are of few classes where images are sorted by class, and every n-th image is of few classes where
    the classes take turns.
    """
    if num_features is None or num_features >= count:
        return None
    return np.random.default_rng(0).permutation(count) < num_features


def bootstrap(statistic: Statistic, values: NDArray[np.float64], tail: float = TAIL) -> tuple[float, float]:
    """The lower and the upper end of a statistic's percentile-bootstrap interval, from a fixed random seed.

    Args:
        statistic: a function of values and an `axis`, such as `np.mean`.
        values: (B, ...), an entry for each sampling seed; entries are drawn along the first axis.
        tail: the share of resamples that is left out at either end, 0..0.5.

    References: An Introduction to the Bootstrap (Efron and Tibshirani, 1993), chapter 13
    """
    count, size = max(_RESAMPLES, ceil(_BEYOND / tail)), len(values)
    generator, at_once = np.random.default_rng(0), max(1, _CELLS // values.size)
    numbers = [min(at_once, count - start) for start in range(0, count, at_once)]
    found = [statistic(values[generator.integers(size, size=(number, size))], axis=1) for number in numbers]
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return float(low), float(high)


def _plogp(probabilities: NDArray[np.float64]) -> float:
    """The sum of p log p, which is 0 at p = 0."""
    return float((probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0))).sum())

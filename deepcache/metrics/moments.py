"""Mean and covariance of a set of features, all that a Fréchet distance needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError

_BLOCK = 2_000  # rows that are float64 at once


@dataclass(frozen=True, eq=False)
class Moments:
    """`mean` (D,) and unbiased `covariance` (D, D), float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RunningMoments:
    """Of features that come in parts: their `count`, `mean` (D,) and `scatter` (D, D), the sum of squares about it.

    Holds D (D + 1) numbers, however many features there were. Parts are joined about their own means (Chan et al.), so
    that nothing cancels:

        S = S_a + S_b + n_a n_b / (n_a + n_b) (m_b - m_a) (m_b - m_a)^T

    References: Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (Chan et al., 1979)
    """

    count: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> RunningMoments:
        """Of features (B, D), B at least 1.

        Raises:
            DeepCacheError: another shape, or a value that is no number.
        """
        if features.ndim != 2 or len(features) == 0:
            raise DeepCacheError(f"expected features (B, D) of samples, got shape {features.shape}")
        exact = np.asarray(features, np.float64)
        mean = exact.mean(axis=0)
        if not np.isfinite(mean).all():
            raise DeepCacheError("expected finite features, got NaN or infinity; are the images finite?")
        centered = exact - mean
        return cls(len(exact), mean, centered.T @ centered)

    def merge(self, other: RunningMoments) -> RunningMoments:
        """Of both sets."""
        if self.mean.shape != other.mean.shape:
            raise DeepCacheError(f"expected features of one length, got {self.mean.size} and {other.mean.size}")
        count = self.count + other.count
        between = other.mean - self.mean
        apart = np.outer(between, between * (self.count * other.count / count))
        return RunningMoments(count, self.mean + between * (other.count / count), self.scatter + other.scatter + apart)

    def moments(self) -> Moments:
        """Raises: DeepCacheError: fewer than two features."""
        if self.count < 2:
            raise DeepCacheError(f"expected features (B, D) of at least 2 samples, got {self.count}")
        return Moments(self.mean, self.scatter / (self.count - 1))


def moments(features: NDArray[np.floating]) -> Moments:
    """Of features (B, D), B at least 2, in float64."""
    if features.ndim != 2 or len(features) < 2:
        raise DeepCacheError(f"expected features (B, D) of at least 2 samples, got shape {features.shape}")
    found = RunningMoments.of(features[:_BLOCK])
    for start in range(_BLOCK, len(features), _BLOCK):
        found = found.merge(RunningMoments.of(features[start : start + _BLOCK]))
    return found.moments()

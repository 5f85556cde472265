"""Mean and covariance of a set of features, all that a Fréchet distance needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError


@dataclass(frozen=True, eq=False)
class Moments:
    """`mean` (D,) and unbiased `covariance` (D, D), float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def moments(features: NDArray[np.floating]) -> Moments:
    """Of features (B, D), B at least 2, in float64."""
    if features.ndim != 2 or len(features) < 2:
        raise DeepCacheError(f"expected features (B, D) of at least 2 samples, got shape {features.shape}")
    features = np.asarray(features, np.float64)
    return Moments(features.mean(axis=0), np.cov(features, rowvar=False).reshape(features.shape[1], -1))

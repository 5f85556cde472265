"""What samples are compared with: moments and features of real images, small enough to ship with a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from deepcache.errors import DeepCacheError
from deepcache.metrics.distances import Manifold
from deepcache.metrics.extractors import Features
from deepcache.metrics.moments import Moments, moments
from deepcache.models.embedded import EXTRACTOR, WEIGHTS

EMBEDDED = WEIGHTS / EXTRACTOR / "reference.safetensors"  # of the held-out images, on mini-features
NUM_FEATURES = 2_000  # pooled features kept for precision and recall


@dataclass(frozen=True, eq=False)
class Reference:
    """Moments of the `pooled` and `spatial` features of real images, and some pooled `features` (M, D)."""

    pooled: Moments
    spatial: Moments
    features: NDArray[np.float32]

    @cached_property
    def manifold(self) -> Manifold:
        """Of `features`, for precision; worked out once."""
        return Manifold.of(self.features)


def from_features(features: Features) -> Reference:
    """Moments over all images, and the first `NUM_FEATURES` pooled features."""
    return Reference(moments(features.pooled), moments(features.spatial), features.pooled[:NUM_FEATURES])


def save(reference: Reference, path: Path) -> None:
    """As safetensors: moments in float32, features in float16."""
    tensors: dict[str, NDArray[Any]] = {
        "pooled.mean": reference.pooled.mean.astype(np.float32),
        "pooled.covariance": reference.pooled.covariance.astype(np.float32),
        "spatial.mean": reference.spatial.mean.astype(np.float32),
        "spatial.covariance": reference.spatial.covariance.astype(np.float32),
        "features": reference.features.astype(np.float16),
    }
    save_file(tensors, str(path))


def load(path: Path = EMBEDDED) -> Reference:
    """Read what `save` wrote; the statistics that ship with mini-features if no path is given.

    Raises:
        DeepCacheError: no such file.
    """
    if not path.exists():
        raise DeepCacheError(f"expected the reference statistics {path}, which is missing; reinstall the package")
    tensors = load_file(str(path))

    def read(kind: str) -> Moments:
        return Moments(tensors[f"{kind}.mean"].astype(np.float64), tensors[f"{kind}.covariance"].astype(np.float64))

    return Reference(read("pooled"), read("spatial"), tensors["features"].astype(np.float32))

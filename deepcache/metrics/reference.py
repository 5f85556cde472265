"""References: the moments and features of real images, with which samples are compared."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from deepcache.errors import DeepCacheError, on_one_line
from deepcache.files import whole_file
from deepcache.metrics import archives
from deepcache.metrics.distances import Manifold
from deepcache.metrics.images import ARRAY, Images, image_set
from deepcache.metrics.statistics import Moments, Statistics
from deepcache.models.embedded import EXTRACTOR, WEIGHTS

EMBEDDED = WEIGHTS / EXTRACTOR / "reference.safetensors"  # the held-out images, measured with mini-features
NUM_FEATURES = 2_000  # pooled features in the embedded reference
_ADM = (("mu", "sigma"), ("mu_s", "sigma_s"))  # the names of the pooled and the spatial moments in the ADM suite
_OWN = (("pooled.mean", "pooled.covariance"), ("spatial.mean", "spatial.covariance"))
_FEATURES = "features"
_WIDEST = 8_192  # features of an image; Inception has 2,048
_ROUNDING = 1e-4  # how far rounding to float32 moves an eigenvalue at most, as a share of the largest variance
Arrays = Mapping[str, NDArray[Any]]  # the arrays of a file, by name
Measured = Callable[[Images], Statistics]  # gathers the statistics of images with an extractor


@dataclass(frozen=True, eq=False)
class Reference:
    """What is known of real images: moments of their features, and some pooled features (M, D)."""

    pooled: Moments | None = None
    spatial: Moments | None = None
    features: NDArray[np.float32] | None = None
    device: str | torch.device = "cpu"  # where the distances between features are worked out

    @cached_property
    def manifold(self) -> Manifold | None:
        return None if self.features is None else Manifold.of(self.features, device=self.device)

    def on(self, device: str | torch.device) -> Reference:
        """The same reference, with distances worked out on a device that has float64, as CUDA's do, or on the CPU."""
        return replace(self, device=device if torch.device(device).type == "cuda" else "cpu")


def from_statistics(found: Statistics) -> Reference:
    return Reference(found.pooled.moments(), found.spatial.moments(), found.features)


def load(path: Path = EMBEDDED) -> Reference:
    """Read a reference in safetensors; without a path, the statistics that ship with mini-features."""
    if not path.exists():
        raise DeepCacheError(f"expected the reference statistics {path}, which is missing; reinstall the package")
    with archives.readable(path, "reference statistics"):
        tensors = load_file(str(path))
    pooled, spatial = (_moments(path, tensors, *names) for names in _OWN)
    if pooled is None or spatial is None or _FEATURES not in tensors:
        raise DeepCacheError(f"expected moments and {_FEATURES} in {path}, which lacks some; get it again")
    return Reference(pooled, spatial, _features(path, tensors, pooled))


def save_npz(found: Statistics, path: Path) -> None:
    """Write statistics as a reference: float64 moments under the ADM suite's names, and the kept pooled `features`."""
    pooled, spatial = found.pooled.moments(), found.spatial.moments()
    arrays = {"mu": pooled.mean, "sigma": pooled.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    with whole_file(path) as file:
        np.savez(file, **arrays, features=found.features)  # type: ignore[arg-type]


def find(path: Path, measured: Measured) -> Reference:
    """Take a reference from a file or a folder.

    Moments in a file win over the moments of the images beside them, since they are of the whole data set.

    Args:
        path: an `.npz` of the ADM suite or of `save_npz`, a `.safetensors`, or images (`image_set`).
        measured: gathers the statistics of the images, if `path` has images.

    Raises:
        DeepCacheError: the path is none of these, an `.npz` has neither images nor moments, or the values are none
            that a set of features has.
    """
    is_file, suffix = os.path.isfile(path), path.suffix.lower()
    if suffix == ".safetensors" and is_file:
        return load(path)
    if suffix != ".npz" or not is_file:
        return from_statistics(measured(image_set(path)))
    known = archives.headers(path)
    stored = {name: archives.array(path, name) for name in (*chain(*_ADM), _FEATURES) if name in known}
    pooled, spatial = (_moments(path, stored, *names) for names in _ADM)
    if pooled is None and ARRAY not in known:
        raise DeepCacheError(
            f"expected mu and sigma, or images as {ARRAY}, in {path}, "
            f"which has {on_one_line(', '.join(sorted(known))) or 'nothing'}; get it again"
        )
    own = from_statistics(measured(image_set(path))) if ARRAY in known else Reference()
    pooled, spatial = pooled or own.pooled, spatial or own.spatial
    return Reference(pooled, spatial, own.features if _FEATURES not in stored else _features(path, stored, pooled))


def _moments(path: Path, stored: Arrays, mean: str, covariance: str) -> Moments | None:
    """The moments in a file's arrays of these names, or None where the file has neither array."""
    if mean not in stored and covariance not in stored:
        return None
    missing = [name for name in (mean, covariance) if name not in stored]
    if missing:
        raise DeepCacheError(f"expected {mean} and {covariance} together in {path}, where {missing[0]} is missing")
    center, spread = (_real(path, stored, name, np.float64) for name in (mean, covariance))
    size = center.size
    if center.shape != (size,) or spread.shape != (size, size) or not 0 < size <= _WIDEST:
        raise DeepCacheError(
            f"expected {mean} (D,) and {covariance} (D, D) in {path}, D at most {_WIDEST:,}, "
            f"got {center.shape} and {spread.shape}; get it again"
        )
    room = max(_ROUNDING * abs(spread).max(), np.finfo(np.float64).tiny)
    try:
        # Cholesky's decomposition exists for positive eigenvalues alone, and takes less work than the eigenvalues
        np.linalg.cholesky(spread + room * np.eye(size))
        is_covariance = abs(spread - spread.T).max() <= room
    except np.linalg.LinAlgError:
        is_covariance = False
    if not is_covariance:
        raise DeepCacheError(
            f"expected the covariance of features as {covariance} in {path}, got a matrix that is not symmetric or has "
            "a negative eigenvalue, which no features have; get it again"
        )
    return Moments(center, spread)


def _features(path: Path, stored: Arrays, pooled: Moments | None) -> NDArray[np.float32]:
    """The pooled features (M, D) in a file, as long as their moments."""
    found = _real(path, stored, _FEATURES, np.float32)
    width = None if pooled is None else pooled.mean.size
    if found.ndim != 2 or found.shape[1] != width:
        raise DeepCacheError(f"expected {_FEATURES} (M, {width}) in {path}, as wide as the mean, got {found.shape}")
    return found


def _real(path: Path, stored: Arrays, name: str, dtype: type[np.floating]) -> NDArray[Any]:
    """An array of a file as floating-point numbers; all values must be real, and finite in float32."""
    found = stored[name]
    if found.dtype.kind not in "fiu":
        raise DeepCacheError(f"expected real numbers as {name} in {path}, got {found.dtype}; get it again")
    with np.errstate(over="ignore"):
        single = found.astype(np.float32)
    if not np.isfinite(single).all():
        raise DeepCacheError(f"expected finite numbers as {name} in {path}, got NaN or infinity; get it again")
    return found.astype(dtype)

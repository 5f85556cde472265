"""What samples are compared with: moments and features of real images."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from deepcache.errors import DeepCacheError, first_line, on_one_line
from deepcache.files import whole_file
from deepcache.metrics import archives
from deepcache.metrics.distances import Manifold
from deepcache.metrics.extractors import Features, Images
from deepcache.metrics.image_sets import ARRAY, array_images, image_set
from deepcache.metrics.moments import Moments, moments
from deepcache.metrics.statistics import Statistics
from deepcache.models.embedded import EXTRACTOR, WEIGHTS

EMBEDDED = WEIGHTS / EXTRACTOR / "reference.safetensors"  # of the held-out images, on mini-features
NUM_FEATURES = 2_000  # pooled features kept for precision and recall
_POOLED, _SPATIAL, _FEATURES = ("mu", "sigma"), ("mu_s", "sigma_s"), "features"  # as the ADM suite names them
_WIDEST = 8_192  # features of an image; Inception has 2,048
_ROUNDING = 1e-4  # of the largest variance: how far rounding to float32 moves an eigenvalue, and more
Measured = Callable[[Images], Statistics]  # by an extractor


@dataclass(frozen=True, eq=False)
class Reference:
    """Moments of the `pooled` and `spatial` features of real images, and some pooled `features` (M, D).

    A part is None where a file has none of it; what needs it is not measured. `device` is where the distances between
    features are worked out.
    """

    pooled: Moments | None
    spatial: Moments | None
    features: NDArray[np.float32] | None
    device: str | torch.device = "cpu"

    @cached_property
    def manifold(self) -> Manifold | None:
        """Of `features`, for precision; worked out once."""
        return None if self.features is None else Manifold.of(self.features, device=self.device)

    def on(self, device: str | torch.device) -> Reference:
        """The same with its distances worked out there if it has float64, as CUDA's have, else on the CPU."""
        return replace(self, device=device if torch.device(device).type == "cuda" else "cpu")


def from_features(features: Features) -> Reference:
    """Moments over all images, and the first `NUM_FEATURES` pooled features."""
    return Reference(moments(features.pooled), moments(features.spatial), features.pooled[:NUM_FEATURES])


def from_statistics(found: Statistics) -> Reference:
    """Of images that were read batch by batch."""
    assert found.pooled is not None
    assert found.spatial is not None
    return Reference(found.pooled.moments(), found.spatial.moments(), found.features)


def save(reference: Reference, path: Path) -> None:
    """As safetensors: moments in float32, features in float16: small enough to ship with a model."""
    assert reference.pooled is not None
    assert reference.spatial is not None
    assert reference.features is not None
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
        DeepCacheError: no such file, one of something else, or values that are no statistics.
    """
    if not path.exists():
        raise DeepCacheError(f"expected the reference statistics {path}, which is missing; reinstall the package")
    try:
        tensors = load_file(str(path))
    except Exception as error:  # safetensors raises half a dozen kinds
        raise DeepCacheError(
            f"expected reference statistics in {path}, which is truncated or something else: {first_line(error)}"
        ) from error
    pooled, spatial = (_moments(path, tensors, f"{kind}.mean", f"{kind}.covariance") for kind in ("pooled", "spatial"))
    if pooled is None or spatial is None:
        raise DeepCacheError(f"expected reference statistics in {path}, which lacks moments; get it again")
    return Reference(pooled, spatial, _features(path, tensors, pooled))


def save_npz(found: Statistics, path: Path) -> None:
    """Under the names of the ADM suite's references, in float64, and the pooled `features` that were kept.

    Raises:
        DeepCacheError: the file cannot be written.
    """
    reference = from_statistics(found)
    assert reference.pooled is not None
    assert reference.spatial is not None
    assert reference.features is not None
    with whole_file(path) as file:
        np.savez(
            file,
            mu=reference.pooled.mean,
            sigma=reference.pooled.covariance,
            mu_s=reference.spatial.mean,
            sigma_s=reference.spatial.covariance,
            features=reference.features,
        )


def find(path: Path, measured: Measured) -> Reference:
    """A reference from a file or folder.

    Args:
        path: an `.npz` of the ADM suite (`mu`, `sigma`, `mu_s`, `sigma_s`, `arr_0`) or of `save_npz`, a `.safetensors`
            of `save`, or images (`image_set`).
        measured: what images are measured with, where there are any.

    Raises:
        DeepCacheError: none of these, an `.npz` with neither images nor moments, or values that no set of features has.
    """
    is_file, suffix = os.path.isfile(path), path.suffix.lower()
    if suffix == ".safetensors" and is_file:
        return load(path)
    if suffix != ".npz" or not is_file:
        return from_statistics(measured(image_set(path)))
    known = archives.headers(path)
    stored = {name: archives.array(path, name) for name in (*_POOLED, *_SPATIAL, _FEATURES) if name in known}
    moments_of = [_moments(path, stored, *names) for names in (_POOLED, _SPATIAL)]
    if moments_of[0] is None and ARRAY not in known:
        raise DeepCacheError(
            f"expected mu and sigma, or images as {ARRAY}, in {path}, "
            f"which has {on_one_line(', '.join(sorted(known))) or 'nothing'}; get it again"
        )
    own = from_statistics(measured(array_images(path))) if ARRAY in known else Reference(None, None, None)
    pooled, spatial = moments_of[0] or own.pooled, moments_of[1] or own.spatial
    return Reference(pooled, spatial, own.features if _FEATURES not in stored else _features(path, stored, pooled))


def _moments(path: Path, stored: dict[str, Any], mean: str, covariance: str) -> Moments | None:
    """Mean and covariance out of a file's arrays, None where it has neither.

    Raises:
        DeepCacheError: one of them alone, or values that no set of features has.
    """
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
    if not _is_covariance(spread):
        raise DeepCacheError(
            f"expected the covariance of features as {covariance} in {path}, got a matrix that is not symmetric or has "
            "a negative eigenvalue, which no features have; get it again"
        )
    return Moments(center, spread)


def _features(path: Path, stored: dict[str, Any], pooled: Moments | None) -> NDArray[np.float32]:
    """Pooled features (M, D), as wide as their moments.

    Raises:
        DeepCacheError: none, or of another shape.
    """
    if _FEATURES not in stored:
        raise DeepCacheError(f"expected {_FEATURES} in {path}, which has none; get it again")
    found = _real(path, stored, _FEATURES, np.float32)
    width = None if pooled is None else pooled.mean.size
    if found.ndim != 2 or found.shape[1] != width:
        raise DeepCacheError(
            f"expected {_FEATURES} (M, {width}) in {path}, as wide as the mean, got {found.shape}; get it again"
        )
    return found


def _real(path: Path, stored: dict[str, Any], name: str, dtype: type[np.floating]) -> NDArray[Any]:
    """An array of real numbers that are finite in float32."""
    found = np.asarray(stored[name])
    if found.dtype.kind not in "fiu":
        raise DeepCacheError(f"expected real numbers as {name} in {path}, got {found.dtype}; get it again")
    with np.errstate(over="ignore"):
        single = found.astype(np.float32)
    if not np.isfinite(single).all():
        raise DeepCacheError(f"expected finite numbers as {name} in {path}, got NaN or infinity; get it again")
    return found.astype(dtype)


def _is_covariance(matrix: NDArray[np.float64]) -> bool:
    """Whether a matrix is symmetric without a negative eigenvalue, up to rounding.

    Cholesky's decomposition tells it with far less work than the eigenvalues.
    """
    room = _ROUNDING * abs(matrix).max()
    if abs(matrix - matrix.T).max() > room:
        return False
    try:
        np.linalg.cholesky(matrix + max(room, np.finfo(np.float64).tiny) * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        return False
    return True

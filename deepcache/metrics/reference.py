"""What samples are compared with: moments and features of real images."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from deepcache.errors import DeepCacheError
from deepcache.metrics.distances import Manifold
from deepcache.metrics.extractors import Features, Images
from deepcache.metrics.image_sets import ARRAY, array_images, image_set
from deepcache.metrics.moments import Moments, moments
from deepcache.metrics.statistics import Statistics
from deepcache.models.embedded import EXTRACTOR, WEIGHTS

EMBEDDED = WEIGHTS / EXTRACTOR / "reference.safetensors"  # of the held-out images, on mini-features
NUM_FEATURES = 2_000  # pooled features kept for precision and recall
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
        DeepCacheError: no such file.
    """
    if not path.exists():
        raise DeepCacheError(f"expected the reference statistics {path}, which is missing; reinstall the package")
    try:
        tensors = load_file(str(path))

        def read(kind: str) -> Moments:
            return Moments(tensors[f"{kind}.mean"].astype(np.float64), tensors[f"{kind}.covariance"].astype(np.float64))

        return Reference(read("pooled"), read("spatial"), tensors["features"].astype(np.float32))
    except (SafetensorError, KeyError) as error:
        raise DeepCacheError(f"expected reference statistics in {path}, found something else: {error}") from error


def save_npz(found: Statistics, path: Path) -> None:
    """Under the names of the ADM suite's references, in float64, and the pooled `features` that were kept.

    Raises:
        DeepCacheError: the file cannot be written.
    """
    reference = from_statistics(found)
    assert reference.pooled is not None
    assert reference.spatial is not None
    assert reference.features is not None
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            np.savez(
                file,
                mu=reference.pooled.mean,
                sigma=reference.pooled.covariance,
                mu_s=reference.spatial.mean,
                sigma_s=reference.spatial.covariance,
                features=reference.features,
            )
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DeepCacheError(f"cannot write {path}: {error}; choose another file") from error


def find(path: Path, measured: Measured) -> Reference:
    """A reference from a file or folder.

    Args:
        path: an `.npz` of the ADM suite (`mu`, `sigma`, `mu_s`, `sigma_s`, `arr_0`) or of `save_npz`, a `.safetensors`
            of `save`, or images (`image_set`).
        measured: what images are measured with, where there are any.

    Raises:
        DeepCacheError: none of these, or an `.npz` with neither images nor moments.
    """
    if path.suffix == ".safetensors" and path.is_file():
        return load(path)
    if path.suffix != ".npz" or not path.is_file():
        return from_statistics(measured(image_set(path)))
    stored = _arrays(path)
    own = from_statistics(measured(array_images(path))) if ARRAY in stored else Reference(None, None, None)
    pooled, spatial = _moments(path, stored, "mu", "sigma"), _moments(path, stored, "mu_s", "sigma_s")
    if pooled is None and own.pooled is None:
        raise DeepCacheError(
            f"expected mu and sigma, or images as {ARRAY}, in {path}, "
            f"which has {', '.join(sorted(stored)) or 'nothing'}; get it again"
        )
    features = stored.get("features", own.features)
    return Reference(pooled or own.pooled, spatial or own.spatial, features)


def _arrays(path: Path) -> dict[str, Any]:
    """All but the images, which are read part by part; they are there by name."""
    try:
        with path.open("rb") as file, np.load(file) as archive:
            return {name: None if name == ARRAY else archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DeepCacheError(f"expected an .npz in {path}, which is truncated or something else: {error}") from error


def _moments(path: Path, stored: dict[str, Any], mean: str, covariance: str) -> Moments | None:
    if mean not in stored and covariance not in stored:
        return None
    missing = [name for name in (mean, covariance) if name not in stored]
    if missing:
        raise DeepCacheError(f"expected {mean} and {covariance} together in {path}, where {missing[0]} is missing")
    found = Moments(np.asarray(stored[mean], np.float64), np.asarray(stored[covariance], np.float64))
    size = found.mean.size
    if found.mean.shape != (size,) or found.covariance.shape != (size, size):
        raise DeepCacheError(
            f"expected {mean} (D,) and {covariance} (D, D) in {path}, "
            f"got {found.mean.shape} and {found.covariance.shape}; get it again"
        )
    if not (np.isfinite(found.mean).all() and np.isfinite(found.covariance).all()):
        raise DeepCacheError(f"expected finite {mean} and {covariance} in {path}, got NaN or infinity; get it again")
    return found

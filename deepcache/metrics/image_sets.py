"""Images from disk, a part at a time: a sample store, a folder of pictures, or the `arr_0` of an `.npz`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.metrics.archives import headers, opened
from deepcache.metrics.extractors import Images
from deepcache.metrics.picture_files import MOST_PIXELS, pictures_in, pixels
from deepcache.sampling.manifest import FILE as MANIFEST
from deepcache.sampling.store import Store, StoredImages

ARRAY = "arr_0"


@dataclass(frozen=True)
class Pictures:
    """Files of pictures of one size, in the order in which they are read (`pictures_in`)."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def split(self, size: int) -> Iterator[Tensor]:
        expected = pixels(self.paths[0]).shape
        for start in range(0, len(self.paths), size):
            part = [(path, pixels(path)) for path in self.paths[start : start + size]]
            for path, found in part:
                if found.shape != expected:
                    raise DeepCacheError(
                        f"expected images of one size, {_size(expected)} as {self.paths[0].name}; "
                        f"{path} is {_size(found.shape)}"
                    )
            yield _floats(np.stack([found for _, found in part]))


@dataclass(frozen=True)
class ArrayImages:
    """`arr_0` of an `.npz`, uint8 (B, H, W, 3), of which no more than a part is in memory."""

    path: Path
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def split(self, size: int) -> Iterator[Tensor]:
        with opened(self.path, ARRAY) as stream:
            for start in range(0, len(self), size):
                shape = (min(size, len(self) - start), *self.shape[1:])
                found = stream.read(math.prod(shape))
                if len(found) < math.prod(shape):
                    raise DeepCacheError(
                        f"expected {len(self)} images in {self.path}, which is truncated; get it again"
                    )
                yield _floats(np.frombuffer(found, np.uint8).reshape(shape))


def image_set(path: Path) -> Images:
    """What lies at a path.

    Args:
        path: a sample store, a folder of pictures (`pictures_in`, `pixels`), or an `.npz` with `arr_0`.

    Raises:
        DeepCacheError: none of these, one without images, or a store of random weights.
    """
    if os.path.isfile(path / MANIFEST):  # unlike Path.is_file, also for a name that is too long
        store = Store.open(path)
        if not store.manifest.is_trained:
            raise DeepCacheError(
                f"expected samples of trained weights in {path}, got those of random ones, whose metrics are noise; "
                "sample without --weights random"
            )
        return _filled(StoredImages(store, store.seeds()), path)
    if os.path.isdir(path):
        return _filled(Pictures(tuple(pictures_in(path))), path)
    if path.suffix.lower() == ".npz" and os.path.isfile(path):
        return array_images(path)
    raise DeepCacheError(f"expected a sample store, a folder of images or an .npz with {ARRAY} in {path}, got none")


def array_images(path: Path) -> ArrayImages:
    """The images of an `.npz`, of which none is read yet.

    Raises:
        DeepCacheError: no `.npz`, one without images, or one whose images are too large.
    """
    found = headers(path).get(ARRAY)
    if found is None:
        raise DeepCacheError(f"expected images as {ARRAY} in {path}, which has none; name another file")
    shape = found.shape
    if len(shape) != 4 or shape[3] != 3 or found.dtype != np.uint8 or found.is_fortran or not found.num_bytes:
        raise DeepCacheError(f"expected {ARRAY} of uint8 (B, H, W, 3) in {path}, got {found.dtype} {shape}")
    if shape[1] * shape[2] > MOST_PIXELS:
        raise DeepCacheError(
            f"expected images of at most {MOST_PIXELS:,} pixels in {path}, got {_size(shape[1:])}; make them smaller"
        )
    return ArrayImages(path, shape)


def _filled(images: Any, path: Path) -> Images:
    if not len(images):
        raise DeepCacheError(f"expected images in {path}, which has none")
    return images  # type: ignore[no-any-return]


def _floats(found: np.ndarray) -> Tensor:
    """(B, H, W, 3) bytes to (B, 3, H, W) in 0..1."""
    return torch.from_numpy(found.copy()).permute(0, 3, 1, 2).float() / 255


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"

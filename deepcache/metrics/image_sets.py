"""Images from disk, a part at a time: a sample store, a folder of pictures, or the `arr_0` of an `.npz`."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.metrics.extractors import Images
from deepcache.sampling.manifest import FILE as MANIFEST
from deepcache.sampling.store import Store
from deepcache.sampling.stored import StoredImages

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ARRAY = "arr_0"


@dataclass(frozen=True)
class Pictures:
    """Files of one size, in the order of their names, numbers in these by their size."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def split(self, size: int) -> Iterator[Tensor]:
        expected = _pixels(self.paths[0]).shape
        for start in range(0, len(self.paths), size):
            part = [(path, _pixels(path)) for path in self.paths[start : start + size]]
            for path, pixels in part:
                if pixels.shape != expected:
                    raise DeepCacheError(
                        f"expected images of one size, {_size(expected)} as {self.paths[0].name}; "
                        f"{path} is {_size(pixels.shape)}"
                    )
            yield _floats(np.stack([pixels for _, pixels in part]))


@dataclass(frozen=True)
class ArrayImages:
    """`arr_0` of an `.npz`, uint8 (B, H, W, 3), of which no more than a part is in memory."""

    path: Path
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def split(self, size: int) -> Iterator[Tensor]:
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{ARRAY}.npy") as stream:
            _header(stream)
            for start in range(0, len(self), size):
                shape = (min(size, len(self) - start), *self.shape[1:])
                found = stream.read(int(np.prod(shape)))
                if len(found) < np.prod(shape):
                    raise DeepCacheError(
                        f"expected {len(self)} images in {self.path}, which is truncated; get it again"
                    )
                yield _floats(np.frombuffer(found, np.uint8).reshape(shape))


def image_set(path: Path) -> Images:
    """What lies at a path.

    Args:
        path: a sample store, a folder of pictures (below it, too), or an `.npz` with `arr_0`.

    Raises:
        DeepCacheError: none of these, one without images, or a store of random weights.
    """
    if (path / MANIFEST).is_file():
        store = Store.open(path)
        if not store.manifest.is_trained:
            raise DeepCacheError(
                f"expected samples of trained weights in {path}, got those of random ones, whose metrics are noise; "
                "sample without --weights random"
            )
        return _filled(StoredImages(store, store.seeds()), path)
    if path.is_dir():
        found = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        return _filled(Pictures(tuple(sorted(found, key=_in_order))), path)
    if path.suffix == ".npz" and path.is_file():
        return array_images(path)
    raise DeepCacheError(f"expected a sample store, a folder of images or an .npz with {ARRAY} in {path}, got none")


def array_images(path: Path) -> ArrayImages:
    """Raises: DeepCacheError: no `.npz`, or one without images."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{ARRAY}.npy") as stream:
            shape, is_fortran, dtype = _header(stream)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DeepCacheError(f"expected an .npz in {path}, which is truncated or something else: {error}") from error
    except KeyError as error:
        raise DeepCacheError(f"expected images as {ARRAY} in {path}, which has none; name another file") from error
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or is_fortran or not shape[0]:
        raise DeepCacheError(f"expected {ARRAY} of uint8 (B, H, W, 3) in {path}, got {dtype} {shape}")
    return ArrayImages(path, shape)


def _in_order(path: Path) -> list[str | int]:
    """2.png before 10.png, as prompts count them."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", str(path)))]


def _header(stream: Any) -> tuple[Any, bool, np.dtype[Any]]:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read:
        raise ValueError(f"version {version} of numpy's format")
    return read[version](stream)


def _filled(images: Any, path: Path) -> Images:
    if not len(images):
        raise DeepCacheError(f"expected images in {path}, which has none")
    return images  # type: ignore[no-any-return]


def _pixels(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DeepCacheError(f"expected an image in {path}, which cannot be read: {error}") from error


def _floats(pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) bytes to (B, 3, H, W) in 0..1."""
    return torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 255


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"

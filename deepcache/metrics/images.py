"""The images that metrics take, (B, 3, H, W) in 0..1: in memory, or read from disk in parts, as a viewer shows them."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from deepcache.errors import DeepCacheError, first_line
from deepcache.files import read_bytes
from deepcache.metrics.archives import headers, opened, readable
from deepcache.sampling.manifest import FILE as MANIFEST
from deepcache.sampling.store import Store, StoredImages

ARRAY = "arr_0"  # the name of the images in an `.npz`
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MOST_PIXELS = 1 << 25  # of a picture: 5792 x 5792, which take some 800 MB on their way to an extractor
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # Pillow gives other formats, such as PostScript, to programs
_UNREAD_SUFFIXES = (  # a folder with such a picture is refused, so that no picture is left out without a word
    ".apng", ".avif", ".dds", ".exr", ".hdr", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jxl", ".pbm",
    ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".qoi", ".svg", ".tga",
)  # fmt: skip
# Names that begin with a dot are hidden, and so are the folders of copies of macOS' archives and of Synology's disks.
_HIDDEN = re.compile(r"\.|(__MACOSX|@eaDir)\Z")
_MODES_OF_8_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")  # as Pillow names them


class Images(Protocol):
    """Images (B, 3, H, W) in 0..1: a tensor, or an object whose `split` reads `size` at a time from disk."""

    def __len__(self) -> int: ...

    def split(self, size: int) -> Iterable[Tensor]: ...


@dataclass(frozen=True)
class PictureFiles:
    """The pictures of one size in files, in the order of `paths`."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def split(self, size: int) -> Iterator[Tensor]:
        expected = pixels(self.paths[0]).shape
        for start in range(0, len(self.paths), size):
            paths = self.paths[start : start + size]
            part = [pixels(path) for path in paths]
            for path, found in zip(paths, part, strict=True):
                if found.shape != expected:
                    raise DeepCacheError(
                        f"expected images of one size, {expected[1]} x {expected[0]} as {self.paths[0].name}; "
                        f"{path} is {found.shape[1]} x {found.shape[0]}"
                    )
            yield _floats(np.stack(part))


@dataclass(frozen=True)
class ArrayImages:
    """The `arr_0` of an `.npz`, uint8 (B, H, W, 3); no more than a part of the array is in memory."""

    path: Path
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def split(self, size: int) -> Iterator[Tensor]:
        with opened(self.path, ARRAY) as (stream, _):
            for start in range(0, len(self), size):
                shape = (min(size, len(self) - start), *self.shape[1:])
                found = stream.read(math.prod(shape))
                if len(found) < math.prod(shape):
                    raise ValueError(f"it has fewer than {len(self)} images")
                yield _floats(np.frombuffer(found, np.uint8).reshape(shape))


def checked(images: Tensor, *, at_least: int = 1) -> Tensor:
    """Return `at_least` or more floating-point images (B, 3, H, W) in 0..1, and refuse other tensors."""
    if images.ndim != 4 or images.shape[1] != 3 or len(images) < at_least or not images.is_floating_point():
        raise DeepCacheError(
            f"expected floating-point images (B, 3, H, W) with B at least {at_least}, "
            f"got shape {tuple(images.shape)} of {images.dtype}"
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise DeepCacheError(
            f"expected images in 0..1, got values in {low:.3g}..{high:.3g}; turn x in -1..1 into (x + 1) / 2"
        )
    return images


def as_bytes(images: Tensor) -> Tensor:
    """Round images in 0..1 to uint8, as picture files hold them; the images of a store come back as they were saved."""
    return (checked(images) * 255).round().to(torch.uint8)


def image_set(path: Path) -> Images:
    """The images in a sample store, a folder of pictures (`pictures_in`), or an `.npz` with `arr_0`.

    Raises:
        DeepCacheError: the path is none of these, has no images, or is a store of samples of random weights.
    """
    found: StoredImages | PictureFiles
    if os.path.isfile(path / MANIFEST):  # unlike Path.is_file, os.path.isfile does not raise on a name that is too long
        store = Store.open(path)
        if not store.manifest.is_trained:
            raise DeepCacheError(
                f"expected samples of trained weights in {path}, got those of random ones, whose metrics are noise; "
                "sample without --weights random"
            )
        found = StoredImages(store, store.seeds())
    elif os.path.isdir(path):
        found = PictureFiles(tuple(pictures_in(path)))
    elif path.suffix.lower() == ".npz" and os.path.isfile(path):
        return _array_images(path)
    else:
        raise DeepCacheError(f"expected a sample store, a folder of images or an .npz with {ARRAY} in {path}, got none")
    if not len(found):
        raise DeepCacheError(f"expected images in {path}, which has none")
    return found


def _array_images(path: Path) -> ArrayImages:
    """The images in an `.npz`; no image is read yet."""
    found = headers(path).get(ARRAY)
    if found is None:
        raise DeepCacheError(f"expected images as {ARRAY} in {path}, which has none; name another file")
    shape = found.shape
    if len(shape) != 4 or shape[3] != 3 or found.dtype != np.uint8 or found.is_fortran or not found.num_bytes:
        raise DeepCacheError(f"expected {ARRAY} of uint8 (B, H, W, 3) in {path}, got {found.dtype} {shape}")
    if shape[1] * shape[2] > MOST_PIXELS:
        size = f"{shape[2]} x {shape[1]}"
        raise DeepCacheError(f"expected images of at most {MOST_PIXELS:,} pixels in {path}, got {size}; shrink them")
    return ArrayImages(path, shape)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures that are not hidden in a folder and below it, in the order of their names; 2.png before 10.png.

    Raises:
        DeepCacheError: a folder cannot be read or is linked to twice, or a picture is of a kind that is not read.
    """

    def refuse(error: OSError) -> None:
        raise DeepCacheError(f"expected a folder of images in {folder}, got: {first_line(error)}") from error

    found, seen = list[Path](), {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not _HIDDEN.match(name)]
        for path in (Path(place, name) for name in folders):
            if (real := os.path.realpath(path)) in seen:
                raise DeepCacheError(
                    f"expected a folder of images in {folder}, got {path}, which links to a folder that is read "
                    "already; move the link away"
                )
            seen.add(real)
        found += [Path(place, name) for name in names if not _HIDDEN.match(name)]
    for path in found:
        if path.suffix.lower() in _UNREAD_SUFFIXES:
            raise DeepCacheError(
                f"expected pictures as {', '.join(SUFFIXES)} in {folder}, got {path}; save it as .png, or move it away"
            )
    return sorted((path for path in found if path.suffix.lower() in SUFFIXES), key=_in_order)


def pixels(path: Path) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of a picture, turned upright as its EXIF data ask, with 16 bits a channel rounded to 8.

    Pillow drops the lower byte of colours of 16 bits, so that they are up to 1 of 255 too dark.

    Raises:
        DeepCacheError: the file is damaged, animated, too large or partly transparent, or its shades are not known.
    """
    content = io.BytesIO(read_bytes(path, "an image", most_bytes=8 * MOST_PIXELS))  # four channels of 16 bits
    with readable(path, "an image"), Image.open(content, formats=_FORMATS) as opened_image:
        image: Any = opened_image
        if image.width * image.height > MOST_PIXELS:
            raise _unread(path, f"is {image.width} x {image.height}, more than {MOST_PIXELS:,} pixels; make it smaller")
        if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a camera's photo and its previews
            raise _unread(path, "has several frames or pages; save one as .png")
        is_deep_grey = _is_grey_of_16_bits(image)
        if not is_deep_grey and image.mode not in _MODES_OF_8_BITS:
            raise _unread(path, f"has values of Pillow's mode {image.mode}, whose shades are not known; save it as RGB")
        ImageOps.exif_transpose(image, in_place=True)
        if image.has_transparency_data and not is_deep_grey:
            image = image.convert("RGBA")
        if image.has_transparency_data and (is_deep_grey or image.getchannel("A").getextrema()[0] < 255):
            raise _unread(path, "is partly transparent; put it on a background")
        if is_deep_grey:
            grey = np.asarray(image).astype(np.float32) * (255 / 65_535)
            return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def _in_order(path: Path) -> list[str | int]:
    """The parts of a path between which numbers are compared as numbers."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d{1,1000})", str(path)))]


def _is_grey_of_16_bits(image: Any) -> bool:
    """Return True for greys in 0..65535 with black at 0; a TIFF may have 12 bits, or white at 0."""
    if image.format == "TIFF" and (image.tag_v2.get(258), image.tag_v2.get(262)) != ((16,), 1):  # bits, black is 0
        return False
    return bool(image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"))  # "I": older Pillows


def _unread(path: Path, reason: str) -> DeepCacheError:
    return DeepCacheError(f"expected a still image in shades of 8 or 16 bits in {path}, which {reason}")


def _floats(values: NDArray[np.uint8]) -> Tensor:
    """Turn bytes (B, H, W, 3) into images (B, 3, H, W) in 0..1."""
    return torch.from_numpy(values.copy()).permute(0, 3, 1, 2).float() / 255

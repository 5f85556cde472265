"""Pictures in a folder, and the pixels of each: as a viewer shows them, or refused by name."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from deepcache.errors import DeepCacheError, first_line
from deepcache.files import read_bytes

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MOST_PIXELS = 1 << 25  # of a picture: 5792 x 5792, which take some 800 MB on their way to an extractor
_MOST_BYTES = 8 * MOST_PIXELS  # four channels of 16 bits
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # others may run programs: Pillow gives PostScript to `gs`
_OTHERS = (  # endings of pictures that are not read, so that no folder is measured without some of its pictures
    ".apng", ".avif", ".dds", ".exr", ".hdr", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jxl", ".pbm",
    ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".qoi", ".svg", ".tga",
)  # fmt: skip
_COPIES = ("__MACOSX", "@eaDir")  # folders of copies that macOS' archives and Synology's disks keep beside the files
_BYTES_A_CHANNEL = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")  # Pillow's modes
_MOST_OF_16_BITS = 0xFFFF


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder and those below it, in the order of their names, numbers in these by their size.

    Hidden files and folders are left out: a name that begins with a dot, as Jupyter's `.ipynb_checkpoints` and macOS'
    `._x.png` do, or one of `_COPIES`.

    Raises:
        DeepCacheError: a folder that cannot be read or is linked to twice, or a picture of a kind that is not read.
    """
    found: list[Path] = []
    for path in _files(folder):
        suffix = path.suffix.lower()
        if suffix in _OTHERS:
            raise DeepCacheError(
                f"expected pictures as {', '.join(SUFFIXES)} in {folder}, got {path}; save it as .png, or move it away"
            )
        if suffix in SUFFIXES:
            found.append(path)
    return sorted(found, key=_in_order)


def pixels(path: Path) -> NDArray[np.uint8]:
    """The pixels of a picture (H, W, 3), turned upright as its EXIF data ask; 16 bits a channel are rounded to 8.

    Colours of 16 bits lose their lower byte in Pillow, and are up to 1 of 255 too dark.

    Raises:
        DeepCacheError: no picture, a damaged or animated one, one of more than `MOST_PIXELS`, one that is partly
            transparent, or one whose numbers stand for no known shade: 32 bits a channel, CMYK, Lab.
    """
    content = read_bytes(path, "an image", most_bytes=_MOST_BYTES)
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            return _shades(image, path)
    except DeepCacheError:
        raise
    except Exception as error:  # for altered bytes, Pillow's decoders raise a dozen kinds
        raise DeepCacheError(f"expected an image in {path}, which cannot be read: {first_line(error)}") from error


def _files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DeepCacheError(f"expected a folder of images in {folder}, got: {first_line(error)}") from error

    seen = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for path in (Path(place, name) for name in folders):
            if (real := os.path.realpath(path)) in seen:
                raise DeepCacheError(
                    f"expected a folder of images in {folder}, got {path}, which links to a folder that is read "
                    "already; move the link away"
                )
            seen.add(real)
        yield from (Path(place, name) for name in names if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _COPIES


def _in_order(path: Path) -> list[str | int]:
    """2.png before 10.png, as prompts count them."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d{1,1000})", str(path)))]


def _shades(image: Any, path: Path) -> NDArray[np.uint8]:
    if image.width * image.height > MOST_PIXELS:
        raise _other(path, f"is {image.width} x {image.height}, more than {MOST_PIXELS:,} pixels; make it smaller")
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a camera's photo and its previews
        raise _other(path, "has several frames or pages; save one as .png")
    is_deep_grey = _is_grey_of_16_bits(image)
    if not is_deep_grey and image.mode not in _BYTES_A_CHANNEL:
        raise _other(path, f"has values of Pillow's mode {image.mode}, whose shades are not known; save it as RGB")
    if is_deep_grey and image.has_transparency_data:
        raise _other(path, "is partly transparent; put it on a background")
    ImageOps.exif_transpose(image, in_place=True)
    if is_deep_grey:
        grey = np.asarray(image).astype(np.float32) * (255 / _MOST_OF_16_BITS)
        return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            raise _other(path, "is partly transparent; put it on a background")
    return np.asarray(image.convert("RGB"))


def _is_grey_of_16_bits(image: Any) -> bool:
    """Whether the values are in 0..65535, from black to white; TIFF's may have 12 bits or begin with white."""
    if image.format == "TIFF":
        bits, order = image.tag_v2.get(258), image.tag_v2.get(262)  # BitsPerSample; 1 where black is 0
        return bool(image.mode.startswith("I;16") and bits == (16,) and order == 1)
    return bool(image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"))  # "I": older Pillows


def _other(path: Path, what: str) -> DeepCacheError:
    return DeepCacheError(f"expected a still image in shades of 8 or 16 bits in {path}, which {what}")

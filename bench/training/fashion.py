"""Coloured Fashion-MNIST: the images that the embedded models are trained on and measured against.

Every image shows a garment (10 kinds) in one of 7 colours on one of 8 backgrounds, 32 x 32 pixels. The grey images are
Fashion-MNIST's (Xiao, Rasul, Vollgraf, 2017, https://arxiv.org/abs/1708.07747); the colours are painted on.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deepcache.errors import DeepCacheError, first_line
from deepcache.models.captions import BACKGROUNDS, COLOURS, GARMENTS, Subject, subjects

RGB = {
    "red": (0.90, 0.15, 0.15),
    "yellow": (0.95, 0.85, 0.15),
    "green": (0.15, 0.70, 0.25),
    "cyan": (0.20, 0.80, 0.85),
    "blue": (0.20, 0.30, 0.90),
    "purple": (0.65, 0.20, 0.80),
    "white": (0.95, 0.95, 0.95),
    "black": (0.05, 0.05, 0.05),
}
PALETTE = torch.tensor([RGB[name] for name in BACKGROUNDS])  # (8, 3) in 0..1
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_BYTES_OF_IDX = 0x0800  # marks a file of uint8; the number of dimensions is added
_MOST_BYTES = 100_000_000  # 60,000 images take 47 MB
_PREFIX = {"train": "train", "test": "t10k"}
_DARKEST = 0.35  # share of the colour that the darkest pixel of a garment keeps


class Garments(NamedTuple):
    """Grey images and their kinds: `grey` (B, 28, 28) uint8, `garment` (B,) int64 in 0..9."""

    grey: Tensor
    garment: Tensor

    def pick(self, chosen: Tensor | slice) -> Garments:
        """Return the garments at some indices."""
        return Garments(self.grey[chosen], self.garment[chosen])


class Painted(NamedTuple):
    """Coloured images with their subjects.

    `images` (B, 3, 32, 32) in -1..1; `garment`, `colour`, `background` (B,) int64, indices into `GARMENTS`, `COLOURS`,
    `BACKGROUNDS`.
    """

    images: Tensor
    garment: Tensor
    colour: Tensor
    background: Tensor


def load(split: str, folder: str | Path = DEBIAN_FOLDER) -> Garments:
    """Read Fashion-MNIST from a folder of IDX files (plain or gzip).

    Args:
        split: "train" (60,000 images) or "test" (10,000).
        folder: holds e.g. `train-images-idx3-ubyte.gz`; Debian's package `dataset-fashion-mnist` puts its files into
            the default folder.

    Raises:
        DeepCacheError: the folder or one of its files is missing, damaged or something else.
    """
    grey = _read_idx(Path(folder), f"{_PREFIX[split]}-images-idx3-ubyte", (28, 28))
    garment = _read_idx(Path(folder), f"{_PREFIX[split]}-labels-idx1-ubyte", ())
    if len(grey) != len(garment) or (garment >= len(GARMENTS)).any():
        raise DeepCacheError(f"expected a garment in 0..{len(GARMENTS) - 1} for each image in {folder}; get it again")
    return Garments(torch.from_numpy(grey), torch.from_numpy(garment.astype(np.int64)))


def paint(garments: Garments, *, seed: int) -> Painted:
    """Give every garment a random colour and a random other background.

    A pixel of brightness g in 0..1 is opaque where g > 0.2 (softer below) and shows its colour times 0.35 + 0.65 g.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(garments.grey)
    colour = torch.randint(len(COLOURS), (count,), generator=generator)
    shift = torch.randint(1, len(BACKGROUNDS), (count,), generator=generator)
    background = (colour + shift) % len(BACKGROUNDS)
    brightness = torch.nn.functional.pad(garments.grey.float() / 255, (2, 2, 2, 2))[:, None]  # (B, 1, 32, 32)
    opacity = (brightness * 5).clamp(max=1)
    front = PALETTE[colour][:, :, None, None] * (_DARKEST + (1 - _DARKEST) * brightness)
    back = PALETTE[background][:, :, None, None]
    images = opacity * front + (1 - opacity) * back
    return Painted(images * 2 - 1, garments.garment, colour, background)


def drawn(garments: Garments, count: int, step: int, generator: torch.Generator) -> Painted:
    """Return the painted garments of one step of a training.

    Args:
        garments: the garments to draw from.
        count: number of garments to draw.
        step: step of the training, which decides the colours.
        generator: decides the garments.
    """
    chosen = torch.randint(len(garments.grey), (count,), generator=generator)
    return paint(garments.pick(chosen), seed=step)


def subjects_of(painted: Painted) -> list[Subject]:
    """Return the subject of each image."""
    shown = zip(painted.garment.tolist(), painted.colour.tolist(), painted.background.tolist(), strict=True)
    return [Subject(*indices) for indices in shown]


def numbers_of(some: Iterable[Subject]) -> Tensor:
    """Return the places of B subjects in `subjects()`, (B,) int64."""
    numbers = _numbers()
    return torch.tensor([numbers[subject] for subject in some], dtype=torch.int64)


@cache
def _numbers() -> dict[Subject, int]:
    return {subject: number for number, subject in enumerate(subjects())}


def _read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read an array (B, *shape) of uint8 from a file whose header holds the number of dimensions and their lengths."""
    for path, opener in ((folder / f"{name}.gz", gzip.open), (folder / name, open)):
        if path.is_file():
            try:
                with opener(path, "rb") as file:
                    content = file.read(_MOST_BYTES)
            except (OSError, EOFError, zlib.error) as error:
                raise DeepCacheError(f"expected an IDX file in {path}, got: {first_line(error)}") from error
            start = 4 * (2 + len(shape))
            kind, *lengths = np.frombuffer(content[:start].ljust(start, b"\0"), ">u4").tolist()
            size = len(content) - start
            if kind != _BYTES_OF_IDX + 1 + len(shape) or size != math.prod(lengths) or tuple(lengths[1:]) != shape:
                wanted = ", ".join(["B", *map(str, shape)])
                raise DeepCacheError(f"expected an IDX file of bytes ({wanted}) in {path}, got another; get it again")
            return np.frombuffer(content, np.uint8, offset=start).reshape(lengths).copy()
    raise DeepCacheError(
        f"expected the Fashion-MNIST file {name}[.gz] in {folder}, which has none; "
        "install Debian's package dataset-fashion-mnist, or give a folder of IDX files with --data"
    )

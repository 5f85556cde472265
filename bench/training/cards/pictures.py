"""The cards' pictures: tiles of samples, with their captions where they have any, and a matrix of scores."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

_DPI = 100


def tiles(images: Tensor, *, columns: int) -> Image.Image:
    """Images (B, 3, H, W) in 0..1 beside each other, a pixel apart."""
    grid: Image.Image = to_pil_image(make_grid(images, nrow=columns, padding=1))
    return grid


def captioned(images: Tensor, captions: Sequence[str], *, columns: int) -> Image.Image:
    """Images (B, 3, H, W) in 0..1, each magnified, with its caption beneath."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.55 * columns, 1.95 * rows), dpi=_DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for place in axes:
        place.set_xticks([])
        place.set_yticks([])
        place.spines[:].set_visible(False)
    for place, image, caption in zip(axes, images, captions, strict=False):
        place.imshow(_pixels(image), interpolation="nearest")
        place.set_xlabel("\n".join(textwrap.wrap(caption, 22)), fontsize=9)
    return _drawn(figure)


def matrix(images: Tensor, captions: Sequence[str], scores: Tensor) -> Image.Image:
    """Scores (B, K) of each image (columns) with each caption (rows), written into the cells."""
    figure = Figure(figsize=(1.8 + 0.75 * len(images), 1.0 + 0.45 * len(captions)), dpi=_DPI)
    place = figure.add_axes((0.30, 0.02, 0.69, 0.80))
    place.imshow(scores.T.numpy(), cmap="viridis", aspect="auto")
    place.set_yticks(range(len(captions)), captions, fontsize=9)
    place.set_xticks([])
    middle = float(scores.min() + scores.max()) / 2
    for (image, caption), score in np.ndenumerate(scores.numpy()):
        shade = "black" if score > middle else "white"
        place.text(image, caption, f"{score:.2f}", ha="center", va="center", fontsize=8, color=shade)
    width = 0.69 / len(images)
    for number, image in enumerate(images):
        thumbnail = figure.add_axes((0.30 + width * number, 0.84, width, 0.15))
        thumbnail.imshow(_pixels(image), interpolation="nearest")
        thumbnail.axis("off")
    return _drawn(figure)


def _pixels(image: Tensor) -> np.ndarray:
    return np.asarray(image.permute(1, 2, 0).clamp(0, 1))


def _drawn(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)

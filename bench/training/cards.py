"""A model card is a text with scores and a picture, written beside the weights."""

from __future__ import annotations

import io
import json
import platform
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from deepcache.errors import DeepCacheError

DATA = (
    "data: Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017; MIT licence), padded to 32 x 32 and painted: 10 garments x 7 "
    "colours x 7 other backgrounds (`bench/training/fashion.py`). 60,000 images to train on, the 10,000 of the test "
    "split held out."
)
CAPTIONS = "captions: garment, colour and background (`deepcache/models/captions.py`), 490 in all"
_DPI = 100


@dataclass(frozen=True)
class Picture:
    """Samples of the model: `alt` describes the image to those who cannot see it, `caption` says how it was made."""

    image: Image.Image
    alt: str
    caption: str


@dataclass(frozen=True)
class Card:
    """The contents of a card.

    Attributes:
        name: name of the model.
        about: a paragraph on what the model is and what it stands for.
        facts: data and trainings, a line each.
        measured: how the scores were measured.
        scores: contents of `scores.json`; the plain numbers are shown as a table.
        picture: contents of `samples.png`.
        more: tables and remarks after the scores.
    """

    name: str
    about: str
    facts: tuple[str, ...]
    measured: str
    scores: dict[str, Any]
    picture: Picture | None = None
    more: str = ""

    def text(self) -> str:
        """Return the card in Markdown."""
        parts = [f"# {self.name}", self.about]
        if self.picture:
            parts += [f"![{self.picture.alt}](samples.png)", self.picture.caption]
        parts += ["\n".join(f"- {fact}" for fact in self.facts), self.measured, self._table()]
        if self.more:
            parts.append(self.more)
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> None:
        """Write README.md, scores.json and samples.png.

        Raises:
            DeepCacheError: the folder of the weights does not exist.
        """
        if not folder.is_dir():
            raise DeepCacheError(f"expected the weights of {self.name} in {folder}, which is not there; train it first")
        (folder / "README.md").write_text(self.text())
        (folder / "scores.json").write_text(json.dumps(self.scores, indent=2) + "\n")
        if self.picture:
            self.picture.image.save(folder / "samples.png", optimize=True)

    def _table(self) -> str:
        plain = {name: value for name, value in self.scores.items() if isinstance(value, (int, float))}
        return markdown(("score", "value"), [(name.replace("_", " "), value) for name, value in plain.items()])


def markdown(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Return a table in Markdown; fractions have three digits, whole numbers have separators."""
    lines = [columns, ("---",) * len(columns), *(tuple(map(_shown, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def trained(what: str, run: Path, batch: int) -> str:
    """Return how long a training was and where its loss ended, as a fact for a card.

    Args:
        what: what was trained.
        run: folder of the training.
        batch: images of a step.

    Raises:
        DeepCacheError: the folder holds no log.
    """
    if not (run / "log.jsonl").is_file():
        raise DeepCacheError(f"expected the log of a finished training in {run}; train the model first")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines[-20:]]
    last = lines[-1]
    cores = f"{last['threads']} threads of a CPU" if "threads" in last else "a CPU"
    return (
        f"{what}: {last['step']:,} steps of {batch} images ({last['step'] * batch:,} seen), "
        f"{last['seconds'] / 60:.0f} minutes on {cores} ({platform.machine()}), "
        f"loss {sum(losses) / len(losses):.4f} over the end"
    )


def num_parameters(*modules: Any) -> str:
    """Return the number of parameters of all modules, for a sentence."""
    return f"{sum(p.numel() for module in modules for p in module.parameters()):,}"


def tiles(images: Tensor, *, columns: int) -> Image.Image:
    """Return images (B, 3, H, W) in 0..1 side by side, one pixel apart."""
    grid: Image.Image = to_pil_image(make_grid(images, nrow=columns, padding=1))
    return grid


def captioned(images: Tensor, captions: Sequence[str], *, columns: int) -> Image.Image:
    """Return images (B, 3, H, W) in 0..1, magnified, each with its caption beneath."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.55 * columns, 1.95 * rows), dpi=_DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    for axis, image, caption in zip(axes, images, captions, strict=False):
        axis.imshow(_pixels(image), interpolation="nearest")
        axis.set_xlabel("\n".join(textwrap.wrap(caption, 22)), fontsize=9)
    return _drawn(figure)


def matrix(images: Tensor, captions: Sequence[str], scores: Tensor) -> Image.Image:
    """Return a matrix whose cells show the scores (B, K) of images (columns) with captions (rows)."""
    figure = Figure(figsize=(1.8 + 0.75 * len(images), 1.0 + 0.45 * len(captions)), dpi=_DPI)
    axis = figure.add_axes((0.30, 0.02, 0.69, 0.80))
    axis.imshow(scores.T.numpy(), cmap="viridis", aspect="auto")
    axis.set_yticks(range(len(captions)), captions, fontsize=9)
    axis.set_xticks([])
    middle = float(scores.min() + scores.max()) / 2
    for (image, caption), score in np.ndenumerate(scores.numpy()):
        shade = "black" if score > middle else "white"
        axis.text(image, caption, f"{score:.2f}", ha="center", va="center", fontsize=8, color=shade)
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

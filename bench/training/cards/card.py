"""A model card: text, scores and a picture, written beside the weights."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from deepcache.errors import DeepCacheError

DATA = (
    "data: Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017; MIT licence), padded to 32 x 32 and painted: 10 garments x 7 "
    "colours x 7 other backgrounds (`deepcache/models/fashion.py`). 60,000 images to train on, the 10,000 of the test "
    "split held out."
)


@dataclass(frozen=True)
class Picture:
    """What the model does, to look at: `alt` says it to those who cannot see it, `caption` how it was made."""

    image: Image.Image
    alt: str
    caption: str


@dataclass(frozen=True)
class Card:
    """What is said of a model.

    Attributes:
        name: of the model.
        about: a paragraph: what it is and what it stands for.
        facts: a line each: data and trainings.
        measured: how the scores came about.
        scores: what `scores.json` holds; the plain numbers are shown as a table.
        picture: `samples.png`.
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
        """As Markdown."""
        parts = [f"# {self.name}", self.about]
        if self.picture:
            parts += [f"![{self.picture.alt}](samples.png)", self.picture.caption]
        parts += ["\n".join(f"- {fact}" for fact in self.facts), self.measured, self._table()]
        if self.more:
            parts.append(self.more)
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> None:
        """README.md, scores.json and samples.png.

        Raises:
            DeepCacheError: no such folder: a card is of weights.
        """
        if not folder.is_dir():
            raise DeepCacheError(f"expected the weights of {self.name} in {folder}, which is not there; train it first")
        (folder / "README.md").write_text(self.text())
        (folder / "scores.json").write_text(json.dumps(self.scores, indent=2) + "\n")
        if self.picture:
            self.picture.image.save(folder / "samples.png", optimize=True)

    def _table(self) -> str:
        plain = {name: value for name, value in self.scores.items() if isinstance(value, (int, float))}
        return table(("score", "value"), [(name.replace("_", " "), value) for name, value in plain.items()])


def table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """As Markdown; fractions with three digits, whole numbers with separators."""
    lines = [columns, ("---",) * len(columns), *(tuple(map(_shown, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def trained(what: str, run: Path, batch: int) -> str:
    """A fact: how long a training was and where its loss ended, of its log.

    Raises:
        DeepCacheError: no log in `run`.
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
    """Of all of them, for a sentence."""
    return f"{sum(p.numel() for module in modules for p in module.parameters()):,}"

"""A card for each embedded model: what it is, how it was made, a picture, and its scores on held-out data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.training.cards import bk, clip, ddpm, features, ldm, sd
from bench.training.cards.card import Card
from bench.training.pruned import SIZES
from deepcache.models import fashion

CARDS: dict[str, Callable[[fashion.Painted, Path], Card]] = {
    "mini-features": features.card,
    "mini-clip": clip.card,
    "mini-ldm": ldm.card,
    "mini-ddpm": ddpm.card,
    "mini-sd": sd.card,
    **{f"mini-bk-{size}": partial(bk.card, size) for size in SIZES},
}
"""Of the held-out images and the folder of the trainings; those that measure come before those measured."""

__all__ = ["CARDS", "Card"]

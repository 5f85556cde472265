"""What to say of a painted garment: "a red sneaker on a blue background"."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from deepcache.models.fashion import BACKGROUNDS, COLOURS, GARMENTS, Painted

EMPTY = ""  # the prompt that guidance steers away from


class Subject(NamedTuple):
    """Indices into `GARMENTS`, `COLOURS` and `BACKGROUNDS`."""

    garment: int
    colour: int
    background: int

    def __str__(self) -> str:
        return f"a {COLOURS[self.colour]} {GARMENTS[self.garment]} on a {BACKGROUNDS[self.background]} background"


def subjects() -> list[Subject]:
    """All of them: no garment is on a background of its own colour."""
    return [
        Subject(garment, colour, background)
        for garment in range(len(GARMENTS))
        for colour in range(len(COLOURS))
        for background in range(len(BACKGROUNDS))
        if COLOURS[colour] != BACKGROUNDS[background]
    ]


def numbers_of(some: Iterable[Subject]) -> Tensor:
    """Where they stand in `subjects()`, (B,) int64."""
    numbers = _numbers()
    return torch.tensor([numbers[subject] for subject in some], dtype=torch.int64)


@cache
def _numbers() -> dict[Subject, int]:
    return {subject: number for number, subject in enumerate(subjects())}


def subject_of(seed: int) -> Subject:
    """A seed's subject, balanced over garments, colours and backgrounds, and dependent on nothing else."""
    garment, colour = seed % len(GARMENTS), seed % len(COLOURS)
    pairs = len(GARMENTS) * len(COLOURS)  # after which garments and colours come again, with other backgrounds
    shift = 1 + (seed // len(GARMENTS) + seed // pairs) % (len(BACKGROUNDS) - 1)
    return Subject(garment, colour, (colour + shift) % len(BACKGROUNDS))


def subjects_of(painted: Painted) -> list[Subject]:
    """What the images show."""
    shown = zip(painted.garment.tolist(), painted.colour.tolist(), painted.background.tolist(), strict=True)
    return [Subject(*indices) for indices in shown]

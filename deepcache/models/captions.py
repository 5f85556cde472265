"""What the embedded models draw and how it is described: "a red sneaker on a blue background"."""

from __future__ import annotations

from itertools import product, starmap
from typing import NamedTuple

GARMENTS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
BACKGROUNDS = ("red", "yellow", "green", "cyan", "blue", "purple", "white", "black")
COLOURS = BACKGROUNDS[:-1]  # at the same places; a black garment would hide its own drawing


class Subject(NamedTuple):
    """A garment in a colour on a background: indices into `GARMENTS`, `COLOURS` and `BACKGROUNDS`."""

    garment: int
    colour: int
    background: int

    def __str__(self) -> str:
        return f"a {COLOURS[self.colour]} {GARMENTS[self.garment]} on a {BACKGROUNDS[self.background]} background"


def subjects() -> list[Subject]:
    """All 490 subjects; no garment is on a background of its own colour."""
    places = product(*(range(len(kinds)) for kinds in (GARMENTS, COLOURS, BACKGROUNDS)))
    return [subject for subject in starmap(Subject, places) if subject.colour != subject.background]


def subject_of(seed: int) -> Subject:
    """The subject of a seed; consecutive seeds are balanced over garments, colours and backgrounds."""
    garment, colour = seed % len(GARMENTS), seed % len(COLOURS)
    period = len(GARMENTS) * len(COLOURS)  # seeds after which a garment has the same colour again
    shift = 1 + (seed // len(GARMENTS) + seed // period) % (len(BACKGROUNDS) - 1)
    return Subject(garment, colour, (colour + shift) % len(BACKGROUNDS))

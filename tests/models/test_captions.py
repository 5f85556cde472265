"""Captions say what a painted garment shows, and a seed's caption depends on the seed alone (exact laws)."""

from __future__ import annotations

from collections import Counter

import pytest

from deepcache.models import captions
from deepcache.models.captions import Subject


def test_a_caption_names_the_colour_the_garment_and_the_background():
    red, sneaker, blue = (
        captions.COLOURS.index("red"),
        captions.GARMENTS.index("sneaker"),
        captions.BACKGROUNDS.index("blue"),
    )
    assert str(Subject(sneaker, red, blue)) == "a red sneaker on a blue background"


def test_there_are_490_subjects_with_as_many_captions():
    every = captions.subjects()
    assert len(every) == len(set(every)) == len(set(map(str, every))) == 10 * 7 * 7


def test_no_garment_is_on_a_background_of_its_own_colour():
    for subject in captions.subjects():
        assert captions.COLOURS[subject.colour] != captions.BACKGROUNDS[subject.background]


@pytest.mark.parametrize("first", [0, 70, 12_345])
def test_seventy_seeds_have_each_garment_and_colour_together_once(first):
    found = [captions.subject_of(seed) for seed in range(first, first + 70)]
    assert {(subject.garment, subject.colour) for subject in found} == {(g, c) for g in range(10) for c in range(7)}
    assert len(found) == 70


def test_seeds_show_every_background_about_as_often():
    counts = Counter(captions.subject_of(seed).background for seed in range(70))
    assert len(counts) == len(captions.BACKGROUNDS)
    assert max(counts.values()) - min(counts.values()) <= 2  # 49 pairs with 7 colours do not divide by 8


def test_every_seeds_subject_is_one_of_the_subjects():
    assert {captions.subject_of(seed) for seed in range(1_000)} <= set(captions.subjects())


def test_the_first_490_seeds_have_every_subject_once():
    assert sorted(captions.subject_of(seed) for seed in range(490)) == sorted(captions.subjects())

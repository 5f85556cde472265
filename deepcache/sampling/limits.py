"""Upper bounds of what a command may ask for: a larger number is a typing error, refused before a model is loaded."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable

from deepcache.errors import DeepCacheError, shown

END_OF_SEEDS = 2**63  # seeds are below it, since shards keep them as signed 64-bit numbers
MOST_SAMPLES = 10_000_000  # samples of one command; the paper takes 50,000
MOST_A_SHARD = 1_000_000
MOST_A_BATCH = 10_000
MOST_PIXELS_A_SIDE = 65_536
MOST_THREADS = 1_024


def require_seeds(seeds: Iterable[int]) -> None:
    """Refuse seeds that a shard cannot hold.

    Raises:
        DeepCacheError: a seed is below 0 or at least 2^63.
    """
    ends = (seeds[0], seeds[-1]) if isinstance(seeds, range) and seeds else seeds
    for seed in ends:
        if not 0 <= seed < END_OF_SEEDS:
            raise DeepCacheError(f"expected seeds from 0 to 2^63 - 1, got {shown(seed)}; take others")


def whole(*, at_least: int = 1, at_most: int) -> Callable[[str], int]:
    """Return a type for argparse: it turns an option's text into a whole number within the bounds."""

    def parse(text: str) -> int:
        number = int(text) if re.fullmatch("[0-9]{1,20}", text) else -1
        if not at_least <= number <= at_most:
            raise ArgumentTypeError(f"expected a whole number from {at_least} to {at_most:,}, got {shown(text)}")
        return number

    return parse


def seeds_of(text: str) -> range:
    """Return the seeds FIRST, ..., END - 1 of the text "FIRST:END"; a type for argparse."""
    found = re.fullmatch("([0-9]{1,20}):([0-9]{1,20})", text)
    seeds = range(int(found[1]), int(found[2])) if found else range(0)
    if not seeds or seeds.stop > END_OF_SEEDS or seeds.start + MOST_SAMPLES < seeds.stop:
        raise ArgumentTypeError(
            f"expected seeds as FIRST:END, such as 0:50000, at most {MOST_SAMPLES:,} of them and all below 2^63, "
            f"got {shown(text)}"
        )
    return seeds

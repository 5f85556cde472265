"""How much may be asked for at once: a larger number is a slip of the finger, refused before a model is loaded."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable

from deepcache.errors import DeepCacheError, shown

END_OF_SEEDS = 2**63  # a seed is below it, as shards keep seeds in 64 bits with a sign
MOST_SAMPLES = 10_000_000  # of one command; the paper takes 50,000
MOST_A_SHARD = 1_000_000
MOST_A_BATCH = 10_000
MOST_PIXELS_A_SIDE = 65_536
MOST_THREADS = 1_024


def require_seeds(seeds: Iterable[int]) -> None:
    """Refuse seeds that cannot be written beside their samples.

    Raises:
        DeepCacheError: a seed below 0 or from 2^63 on.
    """
    ends = (seeds[0], seeds[-1]) if isinstance(seeds, range) and seeds else seeds
    for seed in ends:
        if not 0 <= seed < END_OF_SEEDS:
            raise DeepCacheError(f"expected seeds from 0 to 2^63 - 1, got {shown(seed)}; take others")


def whole(*, at_least: int = 1, at_most: int) -> Callable[[str], int]:
    """What argparse calls with an option's text, to have a whole number within bounds."""

    def parse(text: str) -> int:
        number = int(text) if re.fullmatch("[0-9]{1,20}", text) else -1
        if not at_least <= number <= at_most:
            raise ArgumentTypeError(f"expected a whole number from {at_least} to {at_most:,}, got {shown(text)}")
        return number

    return parse


def seeds_of(text: str) -> range:
    """FIRST:END as the seeds from FIRST up to, without, END; argparse calls it with an option's text."""
    found = re.fullmatch("([0-9]{1,20}):([0-9]{1,20})", text)
    seeds = range(int(found[1]), int(found[2])) if found else range(0)
    if not seeds or seeds.stop > END_OF_SEEDS or seeds.start + MOST_SAMPLES < seeds.stop:
        raise ArgumentTypeError(
            f"expected seeds as FIRST:END, such as 0:50000, at most {MOST_SAMPLES:,} of them and all below 2^63, "
            f"got {shown(text)}"
        )
    return seeds

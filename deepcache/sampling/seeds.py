"""Which seeds are asked for, and which of them one of several processes samples; processes never communicate."""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from deepcache.errors import DeepCacheError, shown

# Upper bounds of what a command may ask for: a larger number is a typing error, refused before a model is loaded.
END_OF_SEEDS = 2**63  # seeds are below it, since shards keep them as signed 64-bit numbers
MOST_SAMPLES = 10_000_000  # samples of one command; the paper takes 50,000
MOST_A_SHARD = 1_000_000
MOST_A_BATCH = 10_000
MOST_PIXELS_A_SIDE = 65_536
MOST_THREADS = 1_024


def require_seeds(seeds: Iterable[int]) -> None:
    """Refuse seeds that a shard cannot hold: a seed is from 0 to 2^63 - 1."""
    for seed in (seeds[0], seeds[-1]) if isinstance(seeds, range) and seeds else seeds:
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


@dataclass(frozen=True)
class Worker:
    """One of several processes that fill a store."""

    rank: int = 0  # number of this worker, 0 .. `count` - 1
    count: int = 1  # how many workers there are
    local_rank: int = 0  # number of this worker among those on the same machine

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise DeepCacheError(f"expected a worker's rank below the number of workers, got {self.rank}/{self.count}")

    def __str__(self) -> str:
        return f"worker {self.rank}/{self.count}"

    def share(self, seeds: range, size: int) -> Iterator[range]:
        """Yield this worker's seeds, a shard of `size` seeds at a time.

        A worker samples a shard or not by the shard's absolute number, so that no restart or late start skips one.
        """
        for number in range(seeds.start // size, -(-seeds.stop // size)):
            if number % self.count == self.rank:
                yield range(max(seeds.start, number * size), min(seeds.stop, (number + 1) * size))


def worker(text: str | None = None, environment: Mapping[str, str] = os.environ) -> Worker:
    """Return the worker that this process is: by a text such as "2/8", the third of eight, or by its launcher.

    The launchers are `torchrun`, `accelerate launch` and Slurm arrays, which tell by variables of the environment.
    Where each task of an array starts several processes, all processes of all tasks are workers.
    """
    local = _variable(environment, "LOCAL_RANK") or 0
    if text is not None:
        if not (found := re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)):
            raise DeepCacheError(f"expected a worker as RANK/COUNT, such as 0/8, got {shown(text)}")
        return Worker(int(found[1]), int(found[2]), local)
    rank, count = _variable(environment, "RANK"), _variable(environment, "WORLD_SIZE")  # torchrun and accelerate
    if (rank is None) != (count is None):
        raise DeepCacheError("expected RANK and WORLD_SIZE, of which only one is set; unset it or give --worker")
    task, inner = _slurm_task(environment), Worker() if rank is None or count is None else Worker(rank, count)
    return Worker(task.rank * inner.count + inner.rank, task.count * inner.count, local)


def _slurm_task(environment: Mapping[str, str]) -> Worker:
    """Return the worker that a Slurm array started; its ids may begin anywhere and go in steps."""
    number, count, first, step = (
        _variable(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT", "MIN", "STEP")
    )
    if number is None or count is None:
        return Worker()
    rank, rest = divmod(number - (first or 0), step or 1)
    if rest or not 0 <= rank < count:
        raise DeepCacheError(
            f"expected a Slurm array of evenly spaced ids, but {number} is none of {count} from {first or 0} in steps "
            f"of {step or 1}; give --worker RANK/COUNT"
        )
    return Worker(rank, count)


def _variable(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is not None and not re.fullmatch("[0-9]{1,18}", text):
        raise DeepCacheError(f"expected {name} to be a whole number, got {shown(text)}; unset it or give --worker")
    return None if text is None else int(text)


def joined(parts: Iterable[range]) -> list[range]:
    """Unite ranges, which come in the order of their first seeds, to as few ranges as possible."""
    found: list[range] = []
    for part in parts:
        if found and part.start <= found[-1].stop:
            found[-1] = range(found[-1].start, max(found[-1].stop, part.stop))
        else:
            found.append(part)
    return found


def gaps(seeds: range, there: list[range]) -> Iterator[range]:
    """Yield the parts of `seeds` that are in none of the ranges `there`, which ascend and do not touch."""
    start = seeds.start
    first = bisect_right(there, start, key=lambda part: part.start) - 1  # the ranges before lie below the seeds
    for i in range(max(0, first), len(there)):
        if there[i].start >= seeds.stop:
            break
        if start < there[i].start:
            yield range(start, there[i].start)
        start = max(start, there[i].stop)
    if start < seeds.stop:
        yield range(start, seeds.stop)

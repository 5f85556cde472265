"""This module times a run and the uncached run in turns, so that a slower machine slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tqdm import tqdm

from bench.harness.workload import Run, Workload
from deepcache.cache.caching import Cache
from deepcache.errors import DeepCacheError
from deepcache.sampling.samples import is_out_of_memory


@dataclass
class Timing:
    """The times of rounds that take turns.

    Attributes:
        uncached_s: seconds of each uncached round; empty where the run itself is the uncached one.
        cached_s: seconds of each round of the run.
        cache: what the cache did in the last round.
    """

    uncached_s: list[float] = field(default_factory=list)
    cached_s: list[float] = field(default_factory=list)
    cache: Cache | None = None

    @property
    def speedup(self) -> float:
        """The median of uncached over cached seconds; 1 where the run itself is the uncached one.

        An uncached round is divided by the mean of the two cached rounds around it, so that a machine that becomes
        steadily slower changes nothing.
        """
        around = [statistics.fmean(pair) for pair in pairwise(self.cached_s)] or self.cached_s
        ratios = [uncached / cached for uncached, cached in zip(self.uncached_s, around, strict=bool(self.uncached_s))]
        return statistics.median(ratios or [1])


def take_turns(benchmark: Any, rounds: int, cached: Callable[[], Any], uncached: Callable[[], Any] | None) -> None:
    """Run `cached` as the rounds of a benchmark and `uncached`, if any, between each two, or before the only one."""
    begun, rounds = 0, rounds if benchmark.enabled else 1

    def between() -> None:
        nonlocal begun
        begun += 1
        if uncached is not None and (begun > 1 or rounds == 1):
            uncached()

    benchmark.pedantic(cached, setup=between, rounds=rounds)


def interleaved(
    benchmark: Any, rounds: int, workload: Workload, run: Run, base: Workload, uncached: Run
) -> Timing | None:
    """Time `run` of `workload` as a benchmark of some rounds, and `uncached` of `base` in turn with it.

    Returns:
        The times; None where pytest-benchmark is disabled.
    """
    if not benchmark.enabled:
        return None
    timing = Timing()
    _warm_up(base, uncached.scheduler)
    _warm_up(workload, run.scheduler)

    def uncached_round() -> None:
        timing.uncached_s.append(seconds(base, uncached)[0])

    def cached_round() -> None:
        taken_s, timing.cache = seconds(workload, run)
        timing.cached_s.append(taken_s)
        bar.update()

    is_alone = base is workload and uncached == run
    with tqdm(total=rounds, desc="timing", unit="round", disable=None, leave=False) as bar:
        take_turns(benchmark, rounds, cached_round, None if is_alone else uncached_round)
    return timing


def rounds_of(rounds: int, what: str) -> str:
    """Return how times were taken, in words, for the settings of a row."""
    return f"median of {rounds} rounds of {what}, in turn with uncached ones"


def seconds(workload: Workload, run: Run) -> tuple[float, Cache | None]:
    """Return the seconds of one batch, until its images are back from the device, and what the cache did.

    Raises:
        DeepCacheError: the memory does not suffice for the batch.
    """
    count = workload.timed_images
    start = time.perf_counter()
    try:
        _, cache = workload.unhalved(run, range(count), batch_size=count, progress=False)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeepCacheError(
            f"not enough memory to time {count} samples together; take --batch-size below {count}, or --dtype fp16"
        ) from error
    return time.perf_counter() - start, cache


def _warm_up(workload: Workload, solver: str | None) -> None:
    if solver not in workload.warm:
        seconds(workload, Run(solver, 4))  # PNDM needs four steps
        workload.warm.add(solver)

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
from deepcache.errors import DeepCacheError, is_out_of_memory


@dataclass
class Timing:
    """The times of rounds that take turns.

    Attributes:
        uncached_s: seconds of each uncached round; empty where the run itself is the uncached one.
        cached_s: seconds of each round of the run, in turns that are equally long.
        cache: what the cache did in the last round.
    """

    uncached_s: list[float] = field(default_factory=list)
    cached_s: list[float] = field(default_factory=list)
    cache: Cache | None = None

    @property
    def speedup(self) -> float:
        """The median of uncached over cached seconds; 1 where the run itself is the uncached one.

        An uncached round is divided by the median of the two cached turns around it, so that a machine that becomes
        steadily slower changes nothing.
        """
        if not self.uncached_s:
            return 1.0
        each = len(self.cached_s) // (len(self.uncached_s) + (len(self.cached_s) > 1))
        turns = [self.cached_s[start : start + each] for start in range(0, len(self.cached_s), each)]
        around = [one + other for one, other in pairwise(turns)] or turns
        ratios = [uncached / statistics.median(of) for uncached, of in zip(self.uncached_s, around, strict=True)]
        return statistics.median(ratios)


def take_turns(
    benchmark: Any, turns: int, cached: Callable[[], Any], uncached: Callable[[], Any] | None, *, each: int = 1
) -> None:
    """Run `cached` as the rounds of a benchmark, in turns with `uncached`, if any.

    Args:
        benchmark: pytest-benchmark's fixture; one round is run where it is disabled.
        turns: the number of turns of `cached`; `uncached` runs between each two of them, or before the only one.
        cached, uncached: what is run.
        each: the number of rounds in a turn of `cached`; several make up for rounds that are short.
    """
    begun, turns, each = 0, *((turns, each) if benchmark.enabled else (1, 1))

    def between() -> None:
        nonlocal begun
        if uncached is not None and begun % each == 0 and (begun > 0 or turns == 1):
            uncached()
        begun += 1

    benchmark.pedantic(cached, setup=between, rounds=turns * each)


def interleaved(
    benchmark: Any, rounds: int, workload: Workload, run: Run, base: Workload, uncached: Run
) -> Timing | None:
    """Time `run` of `workload` in some turns, and `uncached` of `base` between them.

    A plan with few MACs has several rounds in a turn, which together take about half as long as an uncached round.

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
    each = 1 if run.plan is None else max(1, round(workload.cost.ratio(run.cache_plan) / 2))
    with tqdm(total=rounds * each, desc="timing", unit="round", disable=None, leave=False) as bar:
        take_turns(benchmark, rounds, cached_round, None if is_alone else uncached_round, each=each)
    return timing


def rounds_of(rounds: int, what: str) -> str:
    """Return how times were taken, in words, for the settings of a row."""
    return f"median of {rounds} turns of rounds of {what}, uncached rounds between them"


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

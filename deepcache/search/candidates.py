"""What may be tried: ways to sample, plans for them, and their cost, exact without running anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from typing import Any

from deepcache.costs.explain import explain
from deepcache.costs.macs import EVERYTHING, total_macs
from deepcache.errors import DeepCacheError
from deepcache.plan import CachePlan, uniform
from deepcache.sampling.schedulers import num_calls, num_calls_of, scheduler

Optimal = Callable[["Way", int, int, int], CachePlan | None]  # of a way, branch, order and number of full steps


@dataclass(frozen=True)
class Way:
    """A scheduler by name, None for the pipeline's own, its steps, and how often they call the U-Net."""

    scheduler: str | None
    num_steps: int
    num_calls: int

    def __str__(self) -> str:
        return "" if self.scheduler is None else f"{self.scheduler} {self.num_steps}, "


@dataclass(frozen=True)
class Candidate:
    """A plan for a way; `kind` is "uncached", "uniform" or "optimal", and `macs` are those of a sample."""

    way: Way
    kind: str
    plan: CachePlan
    macs: int

    def __str__(self) -> str:
        if self.kind == "uncached":
            return f"{self.way}uncached"
        interval = (*self.plan.full_steps, self.plan.num_steps)[1]
        last = ", last step full" if self.plan.full_steps[-1] == self.plan.num_steps - 1 else ""
        full = f"N={interval}{last}" if self.kind == "uniform" else self.kind
        return f"{self.way}branch {self.plan.branch}, order {self.plan.order}, {full} ({self.plan.num_full} full)"


@dataclass(frozen=True)
class Space:
    """MACs of the steps, and what may be combined.

    Attributes:
        full: MACs of a full step, everything counted.
        shallow: of a shallow step, for each branch from 0.
        own: the way that the pipeline is sampled in; its uncached MACs are the whole that shares are of.
        ways: all that may be tried.
        branches, orders: of the plans.
    """

    full: int
    shallow: tuple[int, ...]
    own: Way
    ways: tuple[Way, ...]
    branches: tuple[int, ...]
    orders: tuple[int, ...]

    @property
    def whole(self) -> int:
        """MACs of an uncached sample."""
        return self.own.num_calls * self.full

    def speedup(self, candidate: Candidate) -> float:
        """Uncached over the candidate's MACs of a sample: the speedup, if time were MACs."""
        return self.whole / candidate.macs

    @property
    def best_speedup(self) -> float:
        """With as few full steps as the lowest order takes, at the outermost branch."""
        num_full = min(self.orders) + 1
        num_shallow = max(0, min(way.num_calls for way in self.ways) - num_full)
        cheapest = min(self.shallow[branch] for branch in self.branches)
        return self.whole / (num_full * self.full + num_shallow * cheapest)

    def uncached(self, way: Way) -> Candidate:
        """Every step full."""
        plan = CachePlan(way.num_calls, tuple(range(way.num_calls)))
        return Candidate(way, "uncached", plan, way.num_calls * self.full)

    def candidates(self, shares: Sequence[float], optimal: Optimal | None) -> list[Candidate]:
        """The dearest of each kind, branch and order within each share of the whole; each plan once."""
        found: dict[tuple[Way, CachePlan], Candidate] = {}
        for share in shares:
            for way in self.ways:
                for candidate in self._within(way, share * self.whole, optimal):
                    found.setdefault((way, candidate.plan), candidate)
        return list(found.values())

    def _within(self, way: Way, macs: float, optimal: Optimal | None) -> Iterator[Candidate]:
        if way.num_calls * self.full <= macs:
            yield self.uncached(way)
            return
        for branch in self.branches:
            num_full = int((macs - way.num_calls * self.shallow[branch]) // (self.full - self.shallow[branch]))
            for order in self.orders:
                if num_full > order:
                    for kind, plan in _plans(way, branch, order, num_full, optimal):
                        yield Candidate(way, kind, plan, self._macs(plan))

    def _macs(self, plan: CachePlan) -> int:
        return total_macs(plan, self.full, self.shallow[plan.branch])


def _plans(
    way: Way, branch: int, order: int, num_full: int, optimal: Optimal | None
) -> Iterator[tuple[str, CachePlan]]:
    """Of no more than `num_full` full steps."""
    every = uniform(way.num_calls, ceil(way.num_calls / num_full), branch, order)
    yield "uniform", every
    if num_full > 1:
        interval = ceil((way.num_calls - 1) / (num_full - 1))
        yield "uniform", uniform(way.num_calls, interval, branch, order, last_step_full=True)
    if optimal is not None and (found := optimal(way, branch, order, num_full)) is not None:
        yield "optimal", found


def space_of(
    pipe: Any, num_steps: int, *, branches: Sequence[int], orders: Sequence[int], solvers: Sequence[str] | None
) -> Space:
    """Of a pipeline; branches that it does not have are left out.

    Args:
        pipe: with its own scheduler.
        num_steps: of that scheduler.
        branches, orders: of the plans.
        solvers: schedulers by name, each tried with `_SHARES_OF_STEPS` of the steps beside the pipeline's own.

    Raises:
        DeepCacheError: no such scheduler, or none of the branches is there.
        UnsupportedUNetError: a pipeline that cannot be cached.
    """
    own = Way(None, num_steps, num_calls_of(deepcopy(pipe.scheduler), num_steps, type(pipe.scheduler).__name__))
    costs = explain(pipe, 1, own.num_calls).cost
    there = tuple(branch for branch in branches if 0 <= branch < costs.num_branches)
    if not there:
        raise DeepCacheError(f"expected branches out of 0..{costs.num_branches - 1}, got {list(branches)}")
    named = [scheduler(solver, pipe.scheduler.config) for solver in solvers or ()]
    first = () if any(_is_same(pipe.scheduler, other) for other in named) else (own,)  # which would be tried twice
    ways = (*first, *_ways(pipe.scheduler.config, num_steps, solvers or ()))
    shallow = tuple(costs.shallow(branch, EVERYTHING) for branch in range(costs.num_branches))
    return Space(costs.full(EVERYTHING), shallow, own, ways, there, tuple(orders))


def _is_same(one: Any, other: Any) -> bool:
    """Whether two schedulers of a class are configured alike; what begins with _ is diffusers' bookkeeping."""
    configs = [{k: v for k, v in each.config.items() if not k.startswith("_")} for each in (one, other)]
    return type(one) is type(other) and configs[0] == configs[1]


_SHARES_OF_STEPS = (1.0, 0.7, 0.5, 0.4)


def _ways(config: Any, num_steps: int, solvers: Sequence[str]) -> Iterator[Way]:
    for solver in solvers:
        for share in _SHARES_OF_STEPS:
            steps = max(1, round(share * num_steps))
            yield Way(solver, steps, num_calls(solver, config, steps))

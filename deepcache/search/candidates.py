"""The candidates of a search: solvers, plans for them, and their exact costs; and the halving that drops candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from deepcache.costs.explain import explain
from deepcache.costs.macs import EVERYTHING, total_macs
from deepcache.errors import DeepCacheError
from deepcache.plan import CachePlan, uniform
from deepcache.sampling.schedulers import scheduler
from deepcache.sampling.workload import Sampling, Workload

Optimal = Callable[[Sampling, int, int, int], CachePlan | None]  # from a solver, branch, order and number of full steps
Score = Callable[["Candidate", int], float]  # of a candidate on the first seeds, so many; higher is better
_SHARES_OF_STEPS = (1.0, 0.7, 0.5, 0.4)  # steps that a named solver is tried with, as shares of the asked number


@dataclass(frozen=True)
class Candidate:
    """A sampling with a plan.

    Attributes:
        sampling: the solver, its steps, and the plan for all its U-Net calls.
        kind: "uncached", "uniform" or "optimal".
        macs: MACs of a sample.
    """

    sampling: Sampling
    kind: str
    macs: int

    @property
    def plan(self) -> CachePlan:
        """The plan; every step of an uncached candidate's is full."""
        assert isinstance(self.sampling.plan, CachePlan)
        return self.sampling.plan

    def __str__(self) -> str:
        if self.kind == "uncached":
            return f"{named(self.sampling)}uncached"
        interval = (*self.plan.full_steps, self.plan.num_steps)[1]
        last = ", last step full" if self.plan.full_steps[-1] == self.plan.num_steps - 1 else ""
        full = f"N={interval}{last}" if self.kind == "uniform" else self.kind
        branch, order = self.plan.branch, self.plan.order
        return f"{named(self.sampling)}branch {branch}, order {order}, {full} ({self.plan.num_full} full)"


@dataclass(frozen=True, eq=False)
class Space:
    """What may be combined into candidates, and what the steps cost.

    Attributes:
        full: MACs of a full step, everything counted.
        shallow: MACs of a shallow step, for each branch from 0.
        own: the pipeline's own solver and steps; shares are of its uncached MACs.
        calls: the solvers and steps that may be tried, without plans, and how often each calls the U-Net.
        branches, orders: those of the plans.
    """

    full: int
    shallow: tuple[int, ...]
    own: Sampling
    own_calls: int
    calls: Mapping[Sampling, int]
    branches: tuple[int, ...]
    orders: tuple[int, ...]

    @property
    def whole(self) -> int:
        """MACs of an uncached sample by the pipeline's own solver."""
        return self.own_calls * self.full

    def speedup(self, candidate: Candidate) -> float:
        """Return uncached over the candidate's MACs of a sample: the speedup, if time were MACs."""
        return self.whole / candidate.macs

    @property
    def best_speedup(self) -> float:
        """The speedup of as few full steps as the lowest order takes, at the cheapest branch."""
        num_full = min(self.orders) + 1
        num_shallow = max(0, min(self.calls.values()) - num_full)
        cheapest = min(self.shallow[branch] for branch in self.branches)
        return self.whole / (num_full * self.full + num_shallow * cheapest)

    def uncached(self, solver: Sampling) -> Candidate:
        """Return the candidate whose steps are all full."""
        calls = self.calls[solver]
        return Candidate(replace(solver, plan=CachePlan(calls, tuple(range(calls)))), "uncached", calls * self.full)

    def candidates(self, shares: Sequence[float], optimal: Optimal | None) -> list[Candidate]:
        """Return the dearest candidate of each kind, solver, branch and order within each share; each plan once.

        Args:
            shares: shares of the uncached MACs.
            optimal: gives the optimal plan of a number of full steps, or None for no such candidate.
        """
        found: dict[Sampling, Candidate] = {}
        for share in shares:
            for solver in self.calls:
                for candidate in self._within(solver, share * self.whole, optimal):
                    found.setdefault(candidate.sampling, candidate)
        return list(found.values())

    def _within(self, solver: Sampling, macs: float, optimal: Optimal | None) -> Iterator[Candidate]:
        calls = self.calls[solver]
        if calls * self.full <= macs:
            yield self.uncached(solver)
            return
        for branch in self.branches:
            num_full = int((macs - calls * self.shallow[branch]) // (self.full - self.shallow[branch]))
            for order in self.orders:
                if num_full > order:
                    yield from self._plans(solver, branch, order, num_full, optimal)

    def _plans(
        self, solver: Sampling, branch: int, order: int, num_full: int, optimal: Optimal | None
    ) -> Iterator[Candidate]:
        """Yield candidates of at most `num_full` full steps."""
        calls = self.calls[solver]
        yield self._candidate(solver, "uniform", uniform(calls, ceil(calls / num_full), branch, order))
        if num_full > 1:
            interval = ceil((calls - 1) / (num_full - 1))
            yield self._candidate(solver, "uniform", uniform(calls, interval, branch, order, last_step_full=True))
        if optimal is not None and (plan := optimal(solver, branch, order, num_full)) is not None:
            yield self._candidate(solver, "optimal", plan)

    def _candidate(self, solver: Sampling, kind: str, plan: CachePlan) -> Candidate:
        macs = total_macs(plan, self.full, self.shallow[plan.branch])
        return Candidate(replace(solver, plan=plan), kind, macs)


def space_of(
    workload: Workload, num_steps: int, *, branches: Sequence[int], orders: Sequence[int], solvers: Sequence[str] | None
) -> Space:
    """Return the search space of a workload.

    Args:
        workload: its pipeline has the pipeline's own solver.
        num_steps: steps of that solver.
        branches, orders: those of the plans; branches that the U-Net does not have are left out.
        solvers: names of solvers to try beside the pipeline's own, with all steps and with fewer.

    Raises:
        DeepCacheError: there is no such solver, or the U-Net has none of the branches.
        UnsupportedUNetError: the pipeline cannot be cached.
    """
    own = Sampling(None, num_steps)
    own_calls = workload.num_calls(own)
    costs = explain(workload.pipe, 1, own_calls).cost
    there = tuple(branch for branch in branches if 0 <= branch < costs.num_branches)
    if not there:
        raise DeepCacheError(f"expected branches out of 0..{costs.num_branches - 1}, got {list(branches)}")
    solver = workload.pipe.scheduler
    is_named = any(_is_same(solver, scheduler(name, solver.config)) for name in solvers or ())
    tried = [] if is_named else [own]  # the named solver takes the place of the equal own one
    for name in solvers or ():
        tried += [Sampling(name, max(1, round(share * num_steps))) for share in _SHARES_OF_STEPS]
    calls = {each: workload.num_calls(each) for each in tried}
    shallow = tuple(costs.shallow(branch, EVERYTHING) for branch in range(costs.num_branches))
    return Space(costs.full(EVERYTHING), shallow, own, own_calls, calls, there, tuple(orders))


def named(solver: Sampling) -> str:
    """Return solver and steps as the beginning of a candidate's name; nothing for the pipeline's own."""
    return "" if solver.scheduler is None else f"{solver.scheduler} {solver.num_steps}, "


def survivors(candidates: Sequence[Candidate], score: Score, rounds: Sequence[int]) -> list[Candidate]:
    """Return the candidates that are left after successive halving, the cheapest first.

    After each round but the last, drop the half of the candidates with the largest gap to the best cheaper candidate.

    Args:
        candidates: at least one.
        score: scores a candidate on a number of seeds.
        rounds: numbers of seeds, ascending.

    References:
        Non-stochastic Best Arm Identification and Hyperparameter Optimization (Jamieson and Talwalkar, 2016),
        https://arxiv.org/abs/1502.07943
    """
    left = list(candidates)
    for number, count in enumerate(rounds):
        scores = {candidate: score(candidate, count) for candidate in left}
        if number < len(rounds) - 1:
            left = sorted(left, key=lambda candidate: gap(candidate, scores))[: ceil(len(left) / 2)]
    return sorted(left, key=lambda candidate: (candidate.macs, -scores[candidate]))


def gap(candidate: Candidate, scores: Mapping[Candidate, float]) -> float:
    """Return how far the best other candidate of at most the same MACs is ahead; negative where none is."""
    others = (score for other, score in scores.items() if other is not candidate and other.macs <= candidate.macs)
    return max(others, default=float("-inf")) - scores[candidate]


def front(scores: Mapping[Candidate, float]) -> list[Candidate]:
    """Return the Pareto front, the cheapest first: the candidates that score above all of at most the same MACs."""
    return sorted((c for c in scores if gap(c, scores) < 0), key=lambda candidate: candidate.macs)


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two schedulers have one class and configuration; keys with _ are diffusers' bookkeeping."""
    configs = [{k: v for k, v in each.config.items() if not k.startswith("_")} for each in (one, other)]
    return type(one) is type(other) and configs[0] == configs[1]

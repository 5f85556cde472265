"""The candidates of a search: solvers, plans for them, and their exact costs; and the halving that drops candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil
from typing import Any

from deepcache.costs.explain import explain
from deepcache.costs.macs import EVERYTHING, total_macs
from deepcache.errors import DeepCacheError
from deepcache.plan import IDLE, CachePlan, Interval, Order, uniform
from deepcache.sampling.schedulers import scheduler
from deepcache.sampling.workload import Sampling, Workload, image_size_of

Optimal = Callable[
    [Sampling, int, Order, int], CachePlan | None
]  # from a solver, branch, order and number of full steps
Score = Callable[["Candidate", int], float]  # of a candidate on the first seeds, so many; higher is better
_SHARES_OF_STEPS = (1.0, 0.7, 0.5, 0.4)  # steps that a named solver is tried with, as shares of the asked number
_SHALLOW_EVERY = (2, 3)  # of mixed plans: which of the steps between full ones are shallow; the others are idle


@dataclass(frozen=True)
class Candidate:
    """A sampling with a plan for all its U-Net calls; its kind is "uncached", "uniform", "optimal" or "searched"."""

    sampling: Sampling
    kind: str
    macs: int  # of a sample

    @property
    def plan(self) -> CachePlan:
        """The plan; every step of an uncached candidate's is full."""
        assert isinstance(self.sampling.plan, CachePlan)
        return self.sampling.plan

    def __str__(self) -> str:
        plan, kind = self.plan, self.kind
        if kind == "uncached":
            return f"{named(self.sampling)}uncached"
        if kind == "uniform":
            last = ", last step full" if plan.full_steps[-1] == plan.num_steps - 1 else ""
            kind = f"N={(*plan.full_steps, plan.num_steps)[1]}{last}"
        between = "no stage runs" if plan.branch == IDLE else f"branch {plan.branch}"
        if plan.idle_steps:
            between += f" at {plan.num_shallow} steps, no stage runs at {plan.num_idle}"
        return f"{named(self.sampling)}{between}, order {plan.order}, {kind} ({plan.num_full} full)"


@dataclass(frozen=True, eq=False)
class Space:
    """What may be combined into candidates, and what the steps cost.

    Attributes:
        full: MACs of a full step, everything counted.
        shallow: MACs of a shallow step, by branch; 0 of an idle step, at branch -1.
        own, own_calls: the pipeline's own solver and steps, and its U-Net calls; shares are of its uncached MACs.
        calls: the solvers and steps that may be tried, without plans, and how often each calls the U-Net.
        branches, orders: those of the plans.
    """

    full: int
    shallow: Mapping[int, int]
    own: Sampling
    own_calls: int
    calls: Mapping[Sampling, int]
    branches: tuple[int, ...]
    orders: tuple[Order, ...]

    @property
    def whole(self) -> int:
        """MACs of an uncached sample by the pipeline's own solver."""
        return self.own_calls * self.full

    def speedup(self, candidate: Candidate) -> float:
        """Return uncached over the candidate's MACs of a sample: the speedup, if time were MACs."""
        return self.whole / candidate.macs

    def candidates(self, shares: Sequence[float], optimal: Optimal) -> list[Candidate]:
        """Return the dearest candidate of each kind, solver, branch and order within each share; each plan once.

        The shares are of the uncached MACs; `optimal` may return None for no such candidate.
        """
        found: dict[Sampling, Candidate] = {}
        for share, solver in product(shares, self.calls):
            for kind, plan in self._within(solver, share * self.whole, optimal):
                sampling = replace(solver, plan=plan)
                found.setdefault(sampling, Candidate(sampling, kind, self.macs(plan)))
        return list(found.values())

    def macs(self, plan: CachePlan) -> int:
        """Return the MACs of a sample by a plan at one of the branches."""
        return total_macs(plan, self.full, self.shallow[plan.branch] if plan.num_shallow else 0)

    def _within(self, solver: Sampling, macs: float, optimal: Optimal) -> Iterator[tuple[str, CachePlan]]:
        """Yield the plans of a solver whose samples take at most so many MACs, each after its kind."""
        calls = self.calls[solver]
        if calls * self.full <= macs:
            yield "uncached", uniform(calls, 1)
            return
        for branch, order in product(self.branches, self.orders):
            saved = self.full - self.shallow[branch]  # nothing at the last branch of a U-Net without a mid block
            num_full = int((macs - calls * self.shallow[branch]) // saved) if saved else 0
            if num_full <= lowest(order):
                continue
            yield "uniform", uniform(calls, ceil(calls / num_full), branch, order)
            if num_full > 1:
                interval = ceil((calls - 1) / (num_full - 1))
                yield "uniform", uniform(calls, interval, branch, order, last_step_full=True)
            if (plan := optimal(solver, branch, order, num_full)) is not None:
                yield "optimal", plan
        yield from (("uniform", plan) for plan in self._mixed(calls, macs))

    def _mixed(self, calls: int, macs: float) -> Iterator[CachePlan]:
        """Yield the dearest even plans with shallow steps between idle ones, at the lowest branch that has both."""
        branch = min((each for each in self.branches if each != IDLE), default=IDLE)
        if IDLE not in self.branches or branch == IDLE:
            return
        for every, order in product(_SHALLOW_EVERY, self.orders):
            plans = (
                uniform(calls, interval, branch, order, last_step_full=True, shallow_every=every)
                for interval in range(every + 1, calls)
            )
            within = next((plan for plan in plans if self.macs(plan) <= macs), None)
            if within is not None and within.num_full > lowest(order):
                yield within


def space_of(
    workload: Workload,
    num_steps: int,
    *,
    branches: Sequence[int],
    orders: Sequence[Order],
    solvers: Sequence[str] | None,
) -> Space:
    """Return the search space of a workload whose pipeline has its own solver, of `num_steps` steps.

    Branches that the U-Net does not have are left out; if none is left, they are refused. The named solvers are tried
    with all steps and with fewer.
    """
    own = Sampling(None, num_steps)
    own_calls = workload.num_calls(own)
    given = {name: workload.arguments.get(name) for name in ("height", "width", "num_frames")}
    size = {name: value for name, value in given.items() if value is not None}
    if len(size.keys() & {"height", "width"}) == 1:
        size = {**dict(zip(("height", "width"), image_size_of(workload.pipe), strict=True)), **size}
    costs = explain(workload.pipe, Interval(1, IDLE), own_calls, **size).cost
    there = tuple(branch for branch in branches if IDLE <= branch < costs.num_branches)
    if not there:
        raise DeepCacheError(f"expected branches out of {IDLE}..{costs.num_branches - 1}, got {list(branches)}")
    solver = workload.pipe.scheduler
    is_named = any(_settings(scheduler(name, solver.config)) == _settings(solver) for name in solvers or ())
    tried = [] if is_named else [own]  # the named solver takes the place of the equal own one
    for name, share in product(solvers or (), _SHARES_OF_STEPS):
        tried.append(Sampling(name, max(1, round(share * num_steps))))
    calls = {each: workload.num_calls(each) for each in tried}
    shallow = {branch: costs.shallow(branch, EVERYTHING) for branch in there}
    return Space(costs.full(EVERYTHING), shallow, own, own_calls, calls, there, tuple(orders))


def lowest(order: Order) -> int:
    """Return the polynomial degree that an order uses at least."""
    return 0 if order == "auto" else order


def named(solver: Sampling) -> str:
    """Return solver and steps as the beginning of a candidate's name; nothing for the pipeline's own."""
    return "" if solver.scheduler is None else f"{solver.scheduler} {solver.num_steps}, "


def survivors(candidates: Sequence[Candidate], score: Score, rounds: Sequence[int]) -> list[Candidate]:
    """Return the candidates that are left after successive halving, the cheapest first.

    After each round but the last, drop the half of the candidates with the largest gap to the best cheaper candidate.
    Candidates of equal cost and score make the same images (order "auto" is another order there); the first is kept.
    The rounds are ascending numbers of seeds on which `score` scores a candidate.

    References:
        Non-stochastic Best Arm Identification and Hyperparameter Optimization (Jamieson and Talwalkar, 2016),
        https://arxiv.org/abs/1502.07943
    """
    left = list(candidates)
    for number, count in enumerate(rounds):
        different = {(each.macs, score(each, count)): each for each in reversed(left)}
        scores = {each: value for (_, value), each in different.items()}
        left = sorted(scores, key=lambda candidate: gap(candidate, scores))
        if number < len(rounds) - 1:
            left = left[: ceil(len(left) / 2)]
    return sorted(left, key=lambda candidate: (candidate.macs, -scores[candidate]))


def gap(candidate: Candidate, scores: Mapping[Candidate, float]) -> float:
    """Return how far the best other candidate of at most the same MACs is ahead; negative where none is."""
    others = (score for other, score in scores.items() if other is not candidate and other.macs <= candidate.macs)
    return max(others, default=float("-inf")) - scores[candidate]


def front(scores: Mapping[Candidate, float]) -> list[Candidate]:
    """Return the Pareto front, the cheapest first: the candidates that score above all of at most the same MACs."""
    return sorted((c for c in scores if gap(c, scores) < 0), key=lambda candidate: candidate.macs)


def _settings(solver: Any) -> tuple[type, dict[str, Any]]:
    """Return the class and configuration of a scheduler; keys with _ are diffusers' bookkeeping."""
    return type(solver), {key: value for key, value in solver.config.items() if not key.startswith("_")}

"""The trials of candidates for a budget: halving on the search's seeds, checks on the other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.metrics.clip_score import Clip, clip_scores
from deepcache.metrics.fidelity import psnr_each
from deepcache.metrics.perceptual import Perceptual
from deepcache.metrics.statistics import TAIL
from deepcache.plan import IDLE, CachePlan, Order
from deepcache.sampling.workload import Sampling, Workload
from deepcache.search.calibration import Calibration, calibration
from deepcache.search.candidates import Candidate, Space, named, survivors
from deepcache.search.descent import Images, descended
from deepcache.search.tuned import Budget, Estimate, Trial, Tuned, estimate

Values = dict[str, NDArray[np.float64]]  # of each fidelity, (B,)
_ROUNDS = (6, 2, 1)  # rounds of the search sample a sixth of its seeds, a half, all
_CALIBRATED = 8  # seeds of a calibration, at most
_CHECKED = 3  # candidates that are checked where the budget is a speedup
_CHEAP = 1 / 3  # the largest share of the uncached MACs for which plans are searched by descent
_DESCENDED = 24  # plans that a descent evaluates, at most


@dataclass(eq=False)
class Trials:
    """The candidates that were sampled so far; nothing is sampled twice.

    Attributes:
        space: what may be combined; CLIP scores are compared with uncached samples of its own solver.
        target: the solver and steps whose uncached samples images are compared with.
        search_seeds, check_seeds: candidates are dropped on the former, and the rest is checked on the latter.
        bar: the progress bar, which counts the samples with plans.
        perceptual, clip: what measures these fidelities; None where they are not measured.
    """

    budget: Budget
    space: Space
    workload: Workload
    target: Sampling
    search_seeds: Sequence[int]
    check_seeds: Sequence[int]
    bar: Any
    perceptual: Perceptual | None = None
    clip: Clip | None = None

    def __post_init__(self) -> None:
        self._calibration = cache(self._calibrated)
        self._rounds = [max(1, len(self.search_seeds) // part) for part in _ROUNDS]
        self._values: dict[tuple[Candidate, int], dict[str, float]] = {}
        self._images = Images(self.workload)

    def optimal(self, solver: Sampling, branch: int, order: Order, num_full: int) -> CachePlan | None:
        """Return the best plan by a calibration on the search's seeds, or None for a branch that is not calibrated.

        The two lowest branches are calibrated, whose steps between full ones cost least; of many solvers, the lowest.
        """
        if branch not in sorted(self.space.branches)[: 1 if len(self.space.calls) > 1 else 2]:
            return None
        return self._calibration(solver, branch).plan(num_full, order)

    def _calibrated(self, solver: Sampling, branch: int) -> Calibration:
        self.bar.set_postfix_str(f"{named(solver)}calibrating branch {branch}")
        seeds = self.search_seeds[: min(_CALIBRATED, self.workload.batch_size)]
        with self.workload.under(solver):
            steps = {**self.workload.arguments, **solver.arguments}
            return calibration(replace(self.workload, arguments=steps), seeds, branch)

    def searched(self, candidates: Sequence[Candidate], shares: Sequence[float]) -> list[Candidate]:
        """Return what descent on half of the search's seeds makes of the best idle candidate within each cheap share.

        The best candidate is that of the first round, whose samples are kept.
        """
        found: dict[Sampling, Candidate] = {}
        for share in shares:
            most = share * self.space.whole
            idle = [each for each in candidates if each.plan.branch == IDLE and each.macs <= most]
            if share <= _CHEAP and idle:
                better = self._descended(max(idle, key=lambda candidate: self._mean(candidate, self._rounds[0])))
                found[better.sampling] = better
        for candidate in candidates:
            found.pop(candidate.sampling, None)
        return list(found.values())

    def _descended(self, start: Candidate) -> Candidate:
        def moved(plan: CachePlan) -> Candidate:
            return replace(start, sampling=replace(start.sampling, plan=plan), kind="searched")

        plan = descended(start.plan, lambda plan: self._scores(moved(plan), self._rounds[1]), _DESCENDED)
        return moved(plan)

    def left(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return what halving leaves; candidates are scored by the mean, which says more than a median of few seeds."""
        if not candidates:
            raise DeepCacheError(
                f"no plan of orders {', '.join(map(str, self.space.orders))} fits {self.space.own_calls} steps; "
                "an order needs one full step more than its number; ask for lower orders or more steps"
            )
        added = enumerate(after - before for before, after in pairwise([0, *self._rounds]))
        self.bar.total = self.bar.n + sum(ceil(len(candidates) / 2**number) * seeds for number, seeds in added)
        return survivors(candidates, self._mean, self._rounds)

    def _mean(self, candidate: Candidate, count: int) -> float:
        return float(self._scores(candidate, count).mean())

    def _scores(self, candidate: Candidate, count: int) -> NDArray[np.float64]:
        values = self.values(candidate, self.search_seeds[:count])[self.budget.fidelity]
        return np.array([self.budget.score(value) for value in values])

    def cheapest(self, left: Sequence[Candidate]) -> Trial:
        """Return the cheapest candidate that keeps to the limit on both the search's and the check's seeds.

        Each check has half of the tail of the check before, so that the chance of any holding by luck is below 5 %.
        """
        bounds: dict[Candidate, float] = {}
        for candidate in left:
            if self.budget.holds(self._found(self._trial(candidate)).value):
                trial = self._trial(candidate, TAIL / 2 ** len(bounds), is_checked=True)
                bounds[candidate] = self.budget.worse_end(self._found(trial))
                if self.budget.holds(bounds[candidate]):
                    return trial
        if not bounds:
            likeliest = max(left, key=self._score)
            bounds[likeliest] = self.budget.worse_end(self._found(self._trial(likeliest, is_checked=True)))
        nearest = max(bounds, key=lambda candidate: self.budget.score(bounds[candidate]))
        raise DeepCacheError(
            f"no plan keeps {self.budget.kind} to {self.budget.limit:g} on other seeds; the nearest, {nearest}, "
            f"promises {bounds[nearest]:.4g} (at {self.space.speedup(nearest):.2f} times fewer MACs); ask for that, "
            "or for more branches, orders or steps"
        )

    def fastest(self, left: Sequence[Candidate]) -> Trial:
        """Return the best candidate on the check's seeds among the best on the search's; they share the tail."""
        fast = [candidate for candidate in left if self.space.speedup(candidate) >= self.budget.limit]
        best = sorted(fast, key=self._score, reverse=True)[:_CHECKED]
        checked = [self._trial(candidate, TAIL / len(best), is_checked=True) for candidate in best]
        return max(checked, key=lambda trial: self._found(trial).value)

    def tuned(self, left: Sequence[Candidate], chosen: Trial) -> Tuned:
        trials = tuple(chosen if candidate == chosen.candidate else self._trial(candidate) for candidate in left)
        target = "the solution (DDIM, 250 steps)" if self.target != self.space.own else "the uncached samples"
        by = self.perceptual or self.clip
        target += f" by {by.name}" if by else ""
        return Tuned(self.budget, chosen, trials, self.space, self.search_seeds, self.check_seeds, target)

    def _score(self, candidate: Candidate) -> float:
        return self.budget.score(self._found(self._trial(candidate)).value)

    def _found(self, trial: Trial) -> Estimate:
        return trial.estimates[self.budget.fidelity]

    def _trial(self, candidate: Candidate, tail: float = TAIL, *, is_checked: bool = False) -> Trial:
        seeds = self.check_seeds if is_checked else self.search_seeds
        found = {name: estimate(name, each, tail) for name, each in self.values(candidate, seeds).items()}
        return Trial(candidate, found, len(seeds), is_checked)

    def values(self, candidate: Candidate, seeds: Sequence[int]) -> Values:
        """Return the fidelities of `seeds`, (B,) each; sample only those that no earlier call has sampled."""
        self.bar.set_postfix_str(str(candidate))
        new = [seed for seed in seeds if (candidate, seed) not in self._values]
        if new:
            found = self._measured(self._images.sample(candidate.sampling, new), new)
            for number, seed in enumerate(new):
                self._values[candidate, seed] = {name: float(each[number]) for name, each in found.items()}
        self.bar.update(len(new))
        rows = [self._values[candidate, seed] for seed in seeds]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _measured(self, images: Tensor, seeds: Sequence[int]) -> Values:
        target = self._images.uncached(self.target, seeds)
        found = {"psnr_db": np.array(psnr_each(images, target))}
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual.distance(images, target).double().numpy()
        if self.clip is not None:
            prompts, own = self.workload.conditions(seeds)["prompt"], self._images.uncached(self.space.own, seeds)
            found["clip_loss"] = clip_scores(self.clip, own, prompts) - clip_scores(self.clip, images, prompts)
        return found

"""`tune`: a plan for a budget, found on some seeds and checked on other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import floor
from typing import Any

from tqdm import tqdm

from deepcache.errors import DeepCacheError
from deepcache.metrics.clip_score import Clip
from deepcache.metrics.perceptual import Perceptual
from deepcache.metrics.statistics import TAIL
from deepcache.plan import MOST_STEPS, ORDERS, CachePlan, require_order, require_whole
from deepcache.sampling.conditions import Conditions, given_conditions
from deepcache.sampling.seeds import MOST_A_BATCH, MOST_SAMPLES, require_seeds
from deepcache.sampling.workload import Sampling, Workload
from deepcache.search.budget import FIDELITIES, SPEEDUP, Budget, budget_of, estimate
from deepcache.search.calibration import Calibration, calibration
from deepcache.search.candidates import Candidate, Space, named, space_of, survivors
from deepcache.search.trials import Trials, Values, clip_for, distance_for
from deepcache.search.tuned import Trial, Tuned
from deepcache.unets.pipelines import require_sampler

SEEDS = range(1_000_000, 1_000_036)  # far from the seeds that anybody evaluates on
_SEARCHED = 3  # a third of the seeds is for the search, the other seeds check what was found
_ROUNDS = (6, 2, 1)  # rounds of the search sample a sixth of its seeds, a half, all
_SHARES = (0.75, 0.6, 0.5, 0.4, 0.32, 0.25, 0.2)  # shares of the uncached MACs that plans are made for
_AROUND = (1.25, 1.0, 0.8, 0.6)  # for a speedup: shares of the MACs that the speedup leaves
_CALIBRATED = 8  # seeds of a calibration, at most
_CHECKED = 3  # candidates that are checked where the budget is a speedup
_CONVERGED = Sampling("ddim", 250)  # stands for the solution of the differential equation


def tune(
    pipe: Any,
    *,
    speedup: float | None = None,
    psnr_db: float | None = None,
    perceptual: float | None = None,
    clip_loss: float | None = None,
    num_steps: int = 50,
    solvers: Sequence[str] | None = None,
    branches: Sequence[int] = (0, 1, 2),
    orders: Sequence[int] = ORDERS,
    seeds: Sequence[int] = SEEDS,
    prompts: Sequence[str] | None = None,
    conditions: Conditions | None = None,
    distance: Perceptual | None = None,
    clip: Clip | None = None,
    batch_size: int = 8,
    progress: bool = True,
    **arguments: Any,
) -> Tuned:
    """Find a plan for a budget on some seeds, and check it on other seeds.

        found = deepcache.tune(pipe, psnr_db=35, prompts=["a red sneaker", ...], num_steps=50)
        print(found)
        with deepcache.cached(pipe, found.plan):
            ...

    Costs are exact without running anything. Candidates are uniform and optimal plans of every branch and order, with
    and without a full last step. Successive halving on the first third of the seeds leaves a quarter of the candidates.
    On the other seeds, the cheapest candidate that seems to keep to the limit is checked, then the next, until the
    whole bootstrap interval of a candidate keeps to the limit. For a speedup, the best three are checked.

    Args:
        pipe: a diffusers pipeline with its scheduler, whose call takes `num_inference_steps` and `generator`.
        speedup: budget: least ratio of uncached to cached MACs of a sample, above 1. The highest PSNR is then chosen.
        psnr_db: budget: least PSNR to the uncached samples in dB, of the median seed.
        perceptual: budget: largest perceptual distance to the uncached samples, of the median seed.
        clip_loss: budget: largest loss of CLIP score (0..100), mean over seeds.
        num_steps: steps of the pipeline's scheduler, at least 2.
        solvers: names of schedulers (`deepcache.sampling.schedulers.SCHEDULERS`) that are searched beside the
            pipeline's own, with `num_steps` and fewer. Images are then compared with the solution that all solvers
            approach: 250 steps of DDIM.
        branches, orders: those of the plans; branches that the U-Net does not have are left out.
        seeds: at least 12 different seeds; evaluate the plan on other seeds.
        prompts: what the samples show, for a model that takes prompts: seed i takes prompt i modulo their number. The
            embedded models take captions of garments if none are given.
        conditions: a function from a list of seeds to the pipeline's arguments for them, instead of prompts.
        distance: what measures `perceptual`; `load_perceptual()` if not given: LPIPS where its weights are found.
        clip: what measures `clip_loss`; mini-clip if not given, for the embedded models.
        batch_size: how many samples run together.
        progress: whether to show a progress bar.
        **arguments: passed on to the pipeline, e.g. `guidance_scale`.

    Returns:
        The plan with what it promises on other seeds, and the Pareto front.

    Raises:
        DeepCacheError: an argument is out of range, the model needs prompts and has none, or no plan keeps to the
            budget: the message names the nearest plan.
        UnsupportedUNetError: the pipeline cannot be cached.
    """
    budget = budget_of(speedup=speedup, psnr_db=psnr_db, perceptual=perceptual, clip_loss=clip_loss)
    require_whole("num_steps", num_steps, at_least=2, at_most=MOST_STEPS)
    require_whole("batch_size", batch_size, at_least=1, at_most=MOST_A_BATCH)
    require_whole("the number of seeds", len(seeds), at_least=0, at_most=MOST_SAMPLES)
    require_seeds(seeds)
    for order in orders:
        require_order(order)
    if len(set(seeds)) < 12 or len(set(seeds)) < len(seeds):
        raise DeepCacheError(f"expected at least 12 different seeds, got {len(seeds)}")
    require_sampler(pipe)
    asked = given_conditions(pipe, prompts, conditions)
    workload = Workload(pipe, asked, batch_size, arguments)
    space = space_of(workload, num_steps, branches=branches, orders=orders, solvers=solvers)
    shares = _shares(budget, space)
    trials = Trials(
        workload,
        own=space.own,
        target=_CONVERGED if solvers else space.own,
        perceptual=distance_for(pipe, distance) if budget.kind == "perceptual" else None,
        clip=clip_for(workload, clip, seeds) if budget.kind == "clip_loss" else None,
    )
    count = len(seeds) // _SEARCHED
    with tqdm(desc="tune", unit="sample", disable=None if progress else True, leave=False) as bar:
        search = _Search(budget, space, trials, seeds[:count], seeds[count:], bar)
        left = search.left(space.candidates(shares, search.optimal))
        chosen = search.fastest(left) if budget.kind == SPEEDUP else search.cheapest(left)
        return search.tuned(left, chosen)


@dataclass(eq=False)
class _Search:
    """The search for one budget: it drops candidates on the search's seeds, and checks the rest on the other seeds."""

    budget: Budget
    space: Space
    trials: Trials
    search_seeds: Sequence[int]
    check_seeds: Sequence[int]
    bar: Any

    def __post_init__(self) -> None:
        self._calibration = cache(self._calibrated)

    def optimal(self, solver: Sampling, branch: int, order: int, num_full: int) -> CachePlan | None:
        """Return the best plan by a calibration on the search's seeds; of many solvers only at the outermost branch."""
        if len(self.space.calls) > 1 and branch > min(self.space.branches):
            return None
        return self._calibration(solver, branch).plan(num_full, order)

    def _calibrated(self, solver: Sampling, branch: int) -> Calibration:
        self.bar.set_postfix_str(f"{named(solver)}calibrating branch {branch}")
        workload = self.trials.workload
        seeds = self.search_seeds[: min(_CALIBRATED, workload.batch_size)]
        with workload.under(solver):
            steps = {**workload.arguments, **solver.arguments}
            return calibration(replace(workload, arguments=steps), seeds, branch)

    def left(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return what halving leaves; candidates are scored by the mean, which says more than a median of few seeds.

        Raises:
            DeepCacheError: there are no candidates, since every order needs more full steps than the budget leaves.
        """
        if not candidates:
            raise DeepCacheError(
                f"no plan of orders {', '.join(map(str, self.space.orders))} fits {self.space.own_calls} steps; "
                "an order needs one full step more than its number; ask for lower orders or more steps"
            )
        rounds = [max(1, len(self.search_seeds) // part) for part in _ROUNDS]
        self.bar.total = _num_samples(len(candidates), rounds)

        def score(candidate: Candidate, count: int) -> float:
            mean = float(self._values(candidate, self.search_seeds[:count])[self.budget.fidelity].mean())
            return mean if self._is_higher_better else -mean

        return survivors(candidates, score, rounds)

    def cheapest(self, left: Sequence[Candidate]) -> Trial:
        """Return the cheapest candidate that keeps to the limit on both the search's and the check's seeds.

        Each check has half of the tail of the check before, so that the probability of any holding by chance stays
        below 5 %.
        """
        tried: list[Trial] = []
        for candidate in left:
            if self._may_hold(candidate):
                trial = self._checked(candidate, TAIL / 2 ** len(tried))
                if self.budget.holds(trial.estimates[self.budget.kind]):
                    return trial
                tried.append(trial)
        nearest = max(tried or [self._checked(max(left, key=self._searched_value))], key=self._worse_end)
        raise DeepCacheError(self._unreached(nearest))

    def fastest(self, left: Sequence[Candidate]) -> Trial:
        """Return the best candidate on the check's seeds among the best on the search's; they share the tail."""
        fast = [candidate for candidate in left if self.space.speedup(candidate) >= self.budget.limit]
        best = sorted(fast, key=self._searched_value, reverse=True)[:_CHECKED]
        checked = [self._checked(candidate, TAIL / len(best)) for candidate in best]
        return max(checked, key=lambda trial: trial.estimates["psnr_db"].value)

    def tuned(self, left: Sequence[Candidate], chosen: Trial) -> Tuned:
        trials = [chosen if candidate == chosen.candidate else self._searched(candidate) for candidate in left]
        target = "the solution (DDIM, 250 steps)" if self.trials.target != self.space.own else "the uncached samples"
        by = self.trials.perceptual or self.trials.clip
        target += f" by {by.name}" if by else ""
        return Tuned(self.budget, chosen, tuple(trials), self.space, self.search_seeds, self.check_seeds, target)

    def _may_hold(self, candidate: Candidate) -> bool:
        found = self._searched(candidate).estimates[self.budget.kind].value
        return found >= self.budget.limit if self._is_higher_better else found <= self.budget.limit

    @property
    def _is_higher_better(self) -> bool:
        return FIDELITIES[self.budget.fidelity].is_higher_better

    def _searched_value(self, candidate: Candidate) -> float:
        value = self._searched(candidate).estimates[self.budget.fidelity].value
        return value if self._is_higher_better else -value

    def _worse_end(self, trial: Trial) -> float:
        found = trial.estimates[self.budget.fidelity]
        return found.low if self._is_higher_better else -found.high

    def _searched(self, candidate: Candidate) -> Trial:
        return self._trial(candidate, self.search_seeds, TAIL, is_checked=False)

    def _checked(self, candidate: Candidate, tail: float = TAIL) -> Trial:
        return self._trial(candidate, self.check_seeds, tail, is_checked=True)

    def _trial(self, candidate: Candidate, seeds: Sequence[int], tail: float, *, is_checked: bool) -> Trial:
        found = {name: estimate(name, each, tail) for name, each in self._values(candidate, seeds).items()}
        return Trial(candidate, found, len(seeds), is_checked)

    def _values(self, candidate: Candidate, seeds: Sequence[int]) -> Values:
        self.bar.set_postfix_str(str(candidate))
        before = self.trials.num_sampled
        found = self.trials.values(candidate, seeds)
        self.bar.update(self.trials.num_sampled - before)
        return found

    def _unreached(self, nearest: Trial) -> str:
        found, kind = nearest.estimates[self.budget.kind], self.budget.kind
        bound = found.low if self._is_higher_better else found.high
        return (
            f"no plan keeps {kind} to {self.budget.limit:g} on other seeds; the nearest, {nearest.candidate}, "
            f"promises {bound:.4g} (at {self.space.speedup(nearest.candidate):.2f} times fewer MACs); ask for that, "
            "or for more branches, orders or steps"
        )


def _shares(budget: Budget, space: Space) -> tuple[float, ...]:
    """Return the shares of the uncached MACs that plans are made for.

    Raises:
        DeepCacheError: no plan reaches the speedup.
    """
    if budget.kind != SPEEDUP:
        return _SHARES
    if budget.limit > space.best_speedup:
        nearest, branch, order = floor(100 * space.best_speedup) / 100, min(space.branches), min(space.orders)
        raise DeepCacheError(
            f"no plan reaches a speedup of {budget.limit:g}; the nearest is {nearest}, at branch {branch} with as few "
            f"full steps as order {order} takes; ask for less, or take fewer steps"
        )
    return tuple(min(1.0, around / budget.limit) for around in _AROUND)


def _num_samples(count: int, rounds: Sequence[int]) -> int:
    """Return how many samples the search makes: in each round, those of the candidates left at the seeds added."""
    total, before = 0, 0
    for seeds in rounds:
        total += count * (seeds - before)
        count, before = -(-count // 2), seeds
    return total

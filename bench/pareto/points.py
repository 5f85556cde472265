"""Cost against fidelity: for a model, a solver and its steps, the points of every curve, and what they are held to.

Some seeds choose, others score: which point of a curve is taken at a cost is decided on the former, and everything
that is recorded is of the latter.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil

import numpy as np
from tqdm import tqdm

import deepcache
from bench.harness.measure import Measure, costs
from bench.harness.workload import Run, Samples, Workload
from bench.pareto.aims import Point, psnr_of_mean
from deepcache.costs.macs import EVERYTHING
from deepcache.metrics.bootstrap import Statistic, bootstrap
from deepcache.metrics.fidelity import psnr_each
from deepcache.plan import CachePlan
from deepcache.results.layout import Scalar
from deepcache.sampling.schedulers import scheduler
from deepcache.search.calibration import Calibration, calibrate
from deepcache.search.tuned import Tuned

SOLVERS = ("ddim", "plms", "dpm-solver++")
STEPS = (20, 25, 50)
INTERVALS = (2, 3, 5, 10)
SHARES = (0.7, 0.6, 0.5, 0.4, 0.33, 0.25)  # of the uncached steps
CHEAP = SHARES[-2:]  # where a deep branch leaves no plan: optimal ones at branch 0
FEWER, FEWER_INTERVALS = (0.7, 0.5), (2, 3)  # of predicted features over fewer steps, at branch 0
CHOOSING, SCORING = 8, 16  # seeds, in this order
SOLUTION = "ddim"
SOLVED_BY = 20  # times the protocol's steps, at most the thousand that the models were trained on
TUNED_SEEDS = range(1_000_000, 1_000_018)
CALIBRATED_SEEDS = TUNED_SEEDS[:8]


@dataclass(frozen=True)
class Sampled(Point):
    """A point that was sampled here."""

    run: Run


@dataclass(frozen=True, eq=False)
class Panel:
    """The points of a solver at its steps; `uncached` is among them, as the one that costs all."""

    workload: Workload
    uncached: Run
    seeds: range
    points: tuple[Sampled, ...]

    @property
    def name(self) -> str:
        return f"{self.uncached.scheduler} {self.uncached.num_steps}"

    @property
    def key(self) -> dict[str, Scalar]:
        return {"solver": self.uncached.scheduler, "uncached_steps": self.uncached.num_steps}

    def on(self, *curves: str) -> list[Sampled]:
        """From the cheapest."""
        return sorted((point for point in self.points if point.curve in curves), key=lambda point: point.share)


def steps_of(workload: Workload, num_steps: int) -> int:
    """As many, or as few as `--num-steps` asks for."""
    return min(num_steps, workload.protocol.num_steps)


@cache
def panel(workload: Workload, solver: str, num_steps: int) -> Panel:
    """Sampled and measured once a session."""
    uncached = workload.uncached(scheduler=solver, num_steps=num_steps)
    runs = [({"curve": "uncached"}, "uncached", uncached), *_runs(workload, uncached)]
    with tqdm(runs, desc=f"{workload.model}, {solver} {num_steps}", unit="run", disable=None, leave=False) as bar:
        points = tuple(_point(workload, uncached, *named) for named in bar)
    return Panel(workload, uncached, scoring(workload), points)


def choosing(workload: Workload) -> range:
    """Seeds that decide."""
    return workload.seeds()[:CHOOSING]


def scoring(workload: Workload) -> range:
    """Seeds that are recorded."""
    return workload.seeds(CHOOSING)[:SCORING]


def _runs(workload: Workload, uncached: Run) -> Iterator[tuple[dict[str, Scalar], str, Run]]:
    """Yield the key of a point, its printed name and its run, each run once."""
    own = {"scheduler": uncached.scheduler, "num_steps": uncached.num_steps}
    for num_steps in _fewer(uncached, SHARES):
        yield {"curve": "fewer steps", "steps": num_steps}, f"{num_steps} steps", replace(uncached, num_steps=num_steps)
    for num_steps in _fewer(uncached, FEWER):
        for interval in FEWER_INTERVALS:
            run = workload.every(interval, 0, order=1, scheduler=uncached.scheduler, num_steps=num_steps)
            key = {"curve": "fewer steps, order 1", "steps": num_steps, "interval": interval}
            yield key, f"{num_steps} steps, order 1, N={interval}", run
    for order in (0, 1, 2):
        for interval in INTERVALS:
            if ceil(uncached.num_steps / interval) > order:
                key = {"curve": f"order {order}", "interval": interval}
                yield key, f"order {order}, N={interval}", workload.every(interval, order=order, **own)
    for plan in _optimal(workload, uncached):
        name = f"optimal, branch {plan.branch}, {plan.num_full} full, order {plan.order}"
        yield {"curve": "optimal", **_plan_key(plan)}, name, replace(uncached, plan=plan)
    for trial in tuned(workload, uncached).front:
        plan = trial.candidate.plan
        yield {"curve": "tuned", **_plan_key(plan)}, f"tuned, {trial.candidate}", replace(uncached, plan=plan)


def _plan_key(plan: CachePlan) -> dict[str, Scalar]:
    return {"branch": plan.branch, "order": plan.order, "full_steps": " ".join(map(str, plan.full_steps))}


def _fewer(uncached: Run, shares: Sequence[float]) -> list[int]:
    counts = dict.fromkeys(max(2, round(share * uncached.num_steps)) for share in shares)
    return [count for count in counts if count < uncached.num_steps]


def _optimal(workload: Workload, uncached: Run) -> list[CachePlan]:
    """As many full steps as the intervals have, at the model's branch; at branch 0 what the cheapest shares leave."""
    calls, branch = workload.num_calls(uncached), workload.protocol.branch
    wanted = [(branch, ceil(calls / interval)) for interval in INTERVALS]
    shallow = workload.cost.shallow(0, EVERYTHING) / workload.cost.full(EVERYTHING)
    wanted += [(0, int(calls * (share - shallow) / (1 - shallow))) for share in CHEAP]
    plans = [calibration(workload, uncached, branch).plan(count) for branch, count in wanted if count > 0]
    return [*dict.fromkeys(plans)]


@cache
def calibration(workload: Workload, uncached: Run, branch: int) -> Calibration:
    """From seeds that nothing is measured on."""
    workload.pipe.scheduler = scheduler(uncached.scheduler, workload.pipe.scheduler.config)
    return calibrate(
        workload.pipe,
        branch=branch,
        seeds=CALIBRATED_SEEDS,
        conditions=workload.conditions,
        num_inference_steps=uncached.num_steps,
        **_guidance(workload),
    )


@cache
def tuned(workload: Workload, uncached: Run) -> Tuned:
    """For the MACs of reuse at N = 3, from seeds that nothing is measured on."""
    plan = workload.every(3, scheduler=uncached.scheduler, num_steps=uncached.num_steps).plan
    assert isinstance(plan, CachePlan)
    workload.pipe.scheduler = scheduler(uncached.scheduler, workload.pipe.scheduler.config)
    return deepcache.tune(
        workload.pipe,
        speedup=workload.cost.ratio(plan),
        num_steps=uncached.num_steps,
        branches=sorted({0, workload.protocol.branch}),
        orders=(1, 2),
        seeds=TUNED_SEEDS,
        conditions=workload.conditions,
        batch_size=min(workload.protocol.batch_size, len(TUNED_SEEDS)),
        **_guidance(workload),
    )


def _guidance(workload: Workload) -> dict[str, float]:
    scale = workload.protocol.guidance_scale
    return {} if scale is None else {"guidance_scale": scale}


def solution(workload: Workload, seeds: range) -> Samples:
    """The samples of the converged differential equation."""
    steps_offset = workload.pipe.scheduler.config.get("steps_offset", 0)  # the last timestep is 999
    num_steps = min(1000 - steps_offset, SOLVED_BY * workload.protocol.num_steps)
    run = workload.uncached(scheduler=SOLUTION, num_steps=num_steps)
    return workload.samples(run, seeds, f"{workload.model}, solution")


def _point(workload: Workload, uncached: Run, key: dict[str, Scalar], name: str, run: Run) -> Sampled:
    seeds = scoring(workload)
    samples, base = (workload.samples(each, seeds, name) for each in (run, uncached))
    per_seed = _compared(workload, uncached, run, seeds, name)
    found = costs(workload, run, uncached, samples.cache) | {"share": _share(workload, run, uncached)}
    found |= _with_interval("solved_db", np.median, per_seed["solved_db"])
    if run != uncached:
        each = per_seed["psnr_db"]
        found |= Measure.change(samples, base)
        found |= _with_interval("psnr_db", psnr_of_mean, each) | _with_interval("psnr_median_db", np.median, each)
    if samples.clip_scores:
        found["clip_score"] = statistics.fmean(samples.clip_scores)
        lost = [before - after for before, after in zip(base.clip_scores, samples.clip_scores, strict=True)]
        found |= _with_interval("clip_loss", np.mean, lost) if run != uncached else {}
        per_seed["clip_score"] = samples.clip_scores
    decided = _compared(workload, uncached, run, choosing(workload), name)
    means = {metric: statistics.fmean(each) for metric, each in decided.items()}
    return Sampled(key, name, found["share"], found, per_seed, means, run)


def _compared(workload: Workload, uncached: Run, run: Run, seeds: range, name: str) -> dict[str, list[float]]:
    """PSNR of each seed to the solution, and but for the uncached run itself to the uncached images."""
    images = workload.samples(run, seeds, name).images
    found = {"solved_db": psnr_each(images, solution(workload, seeds).images)}
    if run != uncached:
        found["psnr_db"] = psnr_each(images, workload.samples(uncached, seeds, name).images)
    return found


def _share(workload: Workload, run: Run, uncached: Run) -> float:
    """Of the uncached MACs of a sample, attention products counted: what plans are tuned for."""
    calls = workload.num_calls(run) / workload.num_calls(uncached)
    return calls if run.plan is None else calls / workload.cost.ratio(run.plan)


def _with_interval(name: str, statistic: Statistic, values: Sequence[float]) -> dict[str, float]:
    """Its value over the seeds, and the ends of its bootstrap interval."""
    each = np.asarray(values)
    low, high = bootstrap(statistic, each)
    return {name: float(statistic(each, axis=0)), f"{name}_low": low, f"{name}_high": high}

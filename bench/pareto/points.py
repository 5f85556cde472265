"""This module samples and draws the points of cost against fidelity, for a model, a solver and its number of steps.

Some seeds choose and other seeds score: the choosing seeds decide which point of a curve is taken at a cost, and all
records are measured on the scoring seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import deepcache
from bench.harness.measure import Measure, costs
from bench.harness.workload import Run, Samples, Workload
from bench.pareto.aims import Point, psnr_of_mean
from deepcache.costs.macs import EVERYTHING
from deepcache.metrics.fidelity import psnr_each
from deepcache.metrics.statistics import Statistic, bootstrap
from deepcache.plan import CachePlan
from deepcache.results.layout import Scalar
from deepcache.search.calibration import Calibration, calibrate
from deepcache.search.tuned import Tuned

SOLVERS = ("ddim", "plms", "dpm-solver++")
STEPS = (20, 25, 50)
INTERVALS = (2, 3, 5, 10)
SHARES = (0.7, 0.6, 0.5, 0.4, 0.33, 0.25)  # of the uncached steps
CHEAP = SHARES[-2:]  # shares so small that only branch 0 leaves optimal plans
FEWER, FEWER_INTERVALS = (0.7, 0.5), (2, 3)  # shares and intervals of predicted features over fewer steps, at branch 0
CHOOSING, SCORING = 8, 16  # how many seeds choose, and how many seeds after these score
SOLUTION = "ddim"
SOLVED_BY = 20  # times the protocol's steps; at most the thousand steps that the models were trained on
TUNED_SEEDS = range(1_000_000, 1_000_018)
CALIBRATED_SEEDS = TUNED_SEEDS[:8]
STYLES = {  # for each curve a colour that colour-blind readers tell apart (Okabe and Ito), and a marker
    "fewer steps": ("#000000", "x"),
    "order 0": ("#D55E00", "s"),
    "order 1": ("#56B4E9", "^"),
    "order 2": ("#0072B2", "v"),
    "optimal": ("#CC79A7", "D"),
    "tuned": ("#009E73", "o"),
    "fewer steps, order 1": ("#7F7F7F", "+"),
}
NAMES = {"order 0": "reuse (order 0)"}


@dataclass(frozen=True)
class Sampled(Point):
    """A point whose samples were made in this session."""

    run: Run


@dataclass(frozen=True, eq=False)
class Panel:
    """The points of a solver with a number of steps; the uncached run is one of them, with a share of 1."""

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
        """Return the points on some curves, the cheapest first."""
        return sorted((point for point in self.points if point.curve in curves), key=lambda point: point.share)


def steps_of(workload: Workload, num_steps: int) -> int:
    """Return the given number of steps, or the smaller number that `--num-steps` asks for."""
    return min(num_steps, workload.protocol.num_steps)


@cache
def panel(workload: Workload, solver: str, num_steps: int) -> Panel:
    """Sample and measure the points of a solver, once in a session."""
    uncached = workload.uncached(scheduler=solver, num_steps=num_steps)
    runs = [({"curve": "uncached"}, "uncached", uncached), *_runs(workload, uncached)]
    with tqdm(runs, desc=f"{workload.model}, {solver} {num_steps}", unit="run", disable=None, leave=False) as bar:
        points = tuple(_point(workload, uncached, *named) for named in bar)
    return Panel(workload, uncached, scoring(workload), points)


def choosing(workload: Workload) -> range:
    """Return the seeds that decide which point is taken."""
    return workload.seeds()[:CHOOSING]


def scoring(workload: Workload) -> range:
    """Return the seeds on which recorded metrics are measured."""
    return workload.seeds(CHOOSING)[:SCORING]


def _runs(workload: Workload, uncached: Run) -> Iterator[tuple[dict[str, Scalar], str, Run]]:
    """Yield the key of a point, its printed name and its run, each run once."""
    key: dict[str, Scalar]
    own: dict[str, Any] = {"scheduler": uncached.scheduler, "num_steps": uncached.num_steps}
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
    """Return optimal plans: with each interval's full steps at the model's branch, with cheap shares at branch 0."""
    calls, branch = workload.num_calls(uncached), workload.protocol.branch
    wanted = [(branch, ceil(calls / interval)) for interval in INTERVALS]
    shallow = workload.cost.shallow(0, EVERYTHING) / workload.cost.full(EVERYTHING)
    wanted += [(0, int(calls * (share - shallow) / (1 - shallow))) for share in CHEAP]
    plans = [calibration(workload, uncached, branch).plan(count) for branch, count in wanted if count > 0]
    return [*dict.fromkeys(plans)]


@cache
def calibration(workload: Workload, uncached: Run, branch: int) -> Calibration:
    """Calibrate on seeds that nothing is measured on."""
    with workload.under(uncached):
        return calibrate(
            workload.pipe,
            branch=branch,
            seeds=CALIBRATED_SEEDS,
            conditions=workload.conditions,
            num_inference_steps=uncached.num_steps,
            **workload.arguments,
        )


@cache
def tuned(workload: Workload, uncached: Run) -> Tuned:
    """Tune to the MACs of reuse at N = 3, on seeds that nothing is measured on."""
    plan = workload.every(3, scheduler=uncached.scheduler, num_steps=uncached.num_steps).cache_plan
    with workload.under(uncached):
        return deepcache.tune(
            workload.pipe,
            speedup=workload.cost.ratio(plan),
            num_steps=uncached.num_steps,
            branches=sorted({0, workload.protocol.branch}),
            orders=(1, 2),
            seeds=TUNED_SEEDS,
            conditions=workload.conditions,
            batch_size=min(workload.protocol.batch_size, len(TUNED_SEEDS)),
            **workload.arguments,
        )


def solution(workload: Workload, seeds: range) -> Samples:
    """Return the samples of the solved differential equation: so many steps that more would change nothing."""
    steps_offset = workload.pipe.scheduler.config.get("steps_offset", 0)  # the last timestep may be at most 999
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
    """Return the PSNR of each seed to the solution and, unless the run is the uncached one, to the uncached images."""
    images = workload.samples(run, seeds, name).images
    found = {"solved_db": psnr_each(images, solution(workload, seeds).images)}
    if run != uncached:
        found["psnr_db"] = psnr_each(images, workload.samples(uncached, seeds, name).images)
    return found


def _share(workload: Workload, run: Run, uncached: Run) -> float:
    """Return the share of a sample's uncached MACs, attention products included, as plans are tuned for."""
    calls = workload.num_calls(run) / workload.num_calls(uncached)
    return calls / workload.cost.ratio(run.plan) if isinstance(run.plan, CachePlan) else calls


def _with_interval(name: str, statistic: Statistic, values: Sequence[float]) -> dict[str, float]:
    """Return a statistic over the seeds, and the ends of its bootstrap interval, by their names in records."""
    each = np.asarray(values)
    low, high = bootstrap(statistic, each)
    return {name: float(statistic(each, axis=0)), f"{name}_low": low, f"{name}_high": high}


def figure(rows: Sequence[Sequence[Panel]], metric: str, title: str) -> Figure:
    """Draw the curves of a model as small panels: a row for each solver, a column for each number of steps.

    Args:
        rows: the panels of each solver.
        metric: what is drawn over the share of the uncached MACs, with its bootstrap interval as bars.
        title: the metric's title with its unit.
    """
    found = Figure(figsize=(11, 9), layout="constrained")
    axes = found.subplots(len(rows), max(map(len, rows)), squeeze=False, sharex=True, sharey=True)
    for line, panels in zip(axes, rows, strict=True):
        for axis, panel in zip(line, panels, strict=False):
            _draw(axis, panel, metric)
    found.supxlabel("MACs of a sample, share of the uncached")
    found.supylabel(title)
    handles, labels = axes[0][0].get_legend_handles_labels()
    found.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return found


def _draw(axis: Any, panel: Panel, metric: str) -> None:
    for curve, (colour, marker) in STYLES.items():
        points = panel.on(curve)
        if points:
            ys = [point.metrics[metric] for point in points]
            low = [y - point.metrics[f"{metric}_low"] for y, point in zip(ys, points, strict=True)]
            high = [point.metrics[f"{metric}_high"] - y for y, point in zip(ys, points, strict=True)]
            axis.errorbar(
                [point.share for point in points],
                ys,
                yerr=[[max(0, end) for end in ends] for ends in (low, high)],
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.3,
                elinewidth=0.6,
                capsize=2,
                label=NAMES.get(curve, curve),
            )
    uncached = panel.on("uncached")[0].metrics.get(metric)
    if uncached is not None:
        axis.axhline(uncached, color="0.5", linewidth=0.8, linestyle="--")
    axis.set_title(panel.name, fontsize=10)
    axis.grid(color="0.92")
    axis.set_axisbelow(True)

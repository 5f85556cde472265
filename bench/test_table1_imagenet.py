"""Table 1: class-conditional generation, LDM-4-G on ImageNet in the paper, mini-ldm here.

Uniform and quadratic plans at several intervals, and what a user could do instead: fewer steps at the same MACs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any

import pytest
import thresholds
import torch
from workload import Samples, Timing, Workload

from deepcache.macs import PAPER
from deepcache.metrics.fidelity import drift, quality
from deepcache.metrics.reference import Reference
from deepcache.plan import CachePlan, quadratic, uniform
from deepcache.sampling import labels_of

# The paper's centre and power over 250 steps (Tables 7 to 9); the centre scales with the number of steps.
QUADRATIC = {10: (110 / 250, 1.2), 20: (120 / 250, 1.2)}


@dataclass(frozen=True)
class Row:
    """A method: "uncached", "uniform", "quadratic", or "fewer steps" at the MACs of a uniform interval."""

    kind: str
    interval: int = 1

    def plan(self, num_calls: int, branch: int) -> CachePlan | None:
        if self.kind == "uniform":
            return uniform(num_calls, self.interval, branch)
        if self.kind == "quadratic":
            center, power = QUADRATIC[self.interval]
            return quadratic(num_calls, ceil(num_calls / self.interval), center * num_calls, power, branch)
        return None

    def label(self, num_steps: int, branch: int, scheduler: str, first_seed: int) -> str:
        name = {
            "uncached": "uncached",
            "uniform": f"uniform N={self.interval}",
            "quadratic": f"quadratic N={self.interval}",
            "fewer steps": f"{num_steps} steps (MACs of N={self.interval})",
        }[self.kind]
        extras = [f"branch {branch}"] * bool(branch) + [scheduler] * (scheduler != "ddim")
        return ", ".join([name, *extras, *[f"seeds from {first_seed}"] * bool(first_seed)])

    def __str__(self) -> str:
        return self.kind.replace(" ", "-") + (f"-N{self.interval}" if self.interval > 1 else "")


UNIFORM = [Row("uniform", n) for n in (2, 3, 5, 10, 20)]
ROWS = [
    Row("uncached"),
    *UNIFORM,
    *(Row("quadratic", n) for n in QUADRATIC),
    *(Row("fewer steps", n) for n in (3, 5)),
]
FOUND: dict[tuple[Any, ...], dict[int, dict[str, float]]] = {}  # (branch, scheduler, seed): interval: drift


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_table1(
    benchmark: Any,
    record: Callable[..., None],
    mini_ldm: Workload,
    reference: Reference,
    row: Row,
    branch: int,
    scheduler: str,
    first_seed: int,
    seeds: range,
    num_steps: int,
    rounds: int,
) -> None:
    mini_ldm.use(scheduler)
    plan = row.plan(mini_ldm.num_calls(num_steps), branch)
    cost = mini_ldm.cost()
    steps = num_steps
    if row.kind == "fewer steps":
        share = cost.mean(uniform(num_steps, row.interval, branch)) / cost.full()
        steps = max(1, round(num_steps * share))
    label = row.label(steps, branch, scheduler, first_seed)
    benchmark.group = "table1"
    timing = mini_ldm.time(benchmark, num_steps, plan, steps, rounds)
    uncached = mini_ldm.uncached(scheduler, num_steps, seeds)
    samples = uncached if row.kind == "uncached" else mini_ldm.run(seeds, steps, plan, label)
    change = (
        {} if row.kind == "uncached" else drift(samples.features, uncached.features, samples.images, uncached.images)
    )
    macs = _mean_macs(samples, cost.full()) * (steps / num_steps)
    metrics = {"macs": macs, **_speed(row, timing, mini_ldm.timed_batch_size), **quality(samples.features, reference)}
    record(
        experiment="table1",
        row=label,
        settings={
            "model": mini_ldm.model,
            "weights": "embedded",
            "extractor": "mini-features",
            "device": "cpu",
            "threads": torch.get_num_threads(),
            "scheduler": scheduler,
            "num_steps": steps,
            "guidance_scale": mini_ldm.guidance_scale,
            "method": row.kind,
            "interval": row.interval,
            "branch": branch,
            "num_full": steps if plan is None else plan.num_full,
            "first_seed": first_seed,
            "num_samples": len(seeds),
            "macs_convention": str(PAPER) + f", mean over {num_steps} steps",
        },
        metrics={**metrics, **change},
    )

    if plan is not None:
        assert samples.cache is not None
        assert {g.full_steps for g in samples.cache.generations} == {plan.full_steps}
        assert {g.macs for g in samples.cache.generations} == {round(cost.mean(plan))}
        FOUND.setdefault((branch, scheduler, first_seed), {}).update({row.interval: change} if row in UNIFORM else {})
        if timing is not None:
            assert timing.speedup >= thresholds.SPEEDUP_OF_BOUND * cost.bound(plan)
    if row.kind == "uncached":
        asked = torch.tensor(labels_of(seeds, samples.features.probabilities.shape[1]))
        right = torch.from_numpy(samples.features.probabilities).argmax(1) == asked
        assert right.float().mean() >= thresholds.SAMPLES_AS_ASKED
    if row == Row("uniform", 2):
        assert change["psnr_db"] >= thresholds.PSNR_DB_AT_INTERVAL_2


def test_table1_fidelity_falls_with_the_interval(branch: int, scheduler: str, first_seed: int) -> None:
    found = FOUND.get((branch, scheduler, first_seed), {})
    if len(found) < 2:
        pytest.skip("needs two uniform rows of this branch, scheduler and seed block in the same run")
    drifts = [found[n] for n in sorted(found)]
    for nearer, farther in pairwise(drifts):
        assert nearer["psnr_db"] - farther["psnr_db"] > thresholds.PSNR_FALLS_BY_AT_LEAST_DB
        assert farther["fid_drift"] - nearer["fid_drift"] > thresholds.FID_DRIFT_GROWS_BY_AT_LEAST


def _mean_macs(samples: Samples, full: int) -> float:
    return full if samples.cache is None else samples.cache.generations[0].macs


def _speed(row: Row, timing: Timing | None, batch_size: int) -> dict[str, float]:
    if timing is None:
        return {}
    latency_s = statistics.median(timing.cached_s)
    speedup = 1.0 if row.kind == "uncached" else timing.speedup
    return {"latency_s": latency_s, "throughput": batch_size / latency_s, "speedup": speedup}

"""Predicted against reused features (beyond the paper): orders 0, 1 and 2 at the same plan and cost.

The mean over seeds is ruled by the few whose trajectory tips over to another image, so the median and the share of
tipped seeds stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import pytest
import thresholds
import torch
from PIL import Image
from workload import Samples, Workload

from deepcache.macs import PAPER
from deepcache.metrics.fidelity import drift, tipped
from deepcache.plan import uniform

NUM_STEPS = {"ddim": 50, "dpm-solver++": 25}
NUM_SEEDS = 64
DISTURBED = 0.01  # of the start noise's standard deviation


@pytest.mark.parametrize("solver", NUM_STEPS)
def test_chaos_without_a_cache(record: Callable[..., None], mini_ldm: Workload, solver: str, first_seed: int) -> None:
    """How far a seed moves, uncached, when its start noise does by a hundredth: what no plan can be blamed for."""
    mini_ldm.use(solver)
    num_steps, seeds = NUM_STEPS[solver], range(first_seed, first_seed + NUM_SEEDS)
    row = f"{solver} {num_steps}, uncached, start noise moved by {DISTURBED:.0%}"
    uncached = mini_ldm.samples(seeds, num_steps, None, f"uncached, {solver} {num_steps}")
    moved = mini_ldm.samples(seeds, num_steps, None, row, disturbed=DISTURBED)
    change = drift(moved.features, uncached.features, moved.images, uncached.images)
    facts = {"macs": mini_ldm.cost().full(), "tipped_seeds": _tipped_seeds(moved, uncached, seeds)}
    settings = _settings(mini_ldm, solver, first_seed)
    record(experiment="prediction", row=row, settings=settings, metrics={**facts, **_finite(change)})
    assert change["mse"] > 0


@pytest.mark.parametrize("order", [0, 1, 2], ids="order={}".format)
@pytest.mark.parametrize("interval", [2, 3, 5, 10], ids="N={}".format)
@pytest.mark.parametrize("solver", NUM_STEPS)
def test_prediction(
    benchmark: Any,
    record: Callable[..., None],
    mini_ldm: Workload,
    solver: str,
    interval: int,
    order: int,
    branch: int,
    first_seed: int,
    rounds: int,
) -> None:
    mini_ldm.use(solver)
    num_steps, seeds = NUM_STEPS[solver], range(first_seed, first_seed + NUM_SEEDS)
    plan = uniform(num_steps, interval, branch, order)
    row = f"{solver} {num_steps}, N={interval}, order {order}"
    benchmark.group = f"prediction, {solver}, N={interval}"
    timing = mini_ldm.time(benchmark, num_steps, plan, num_steps, rounds)
    uncached = mini_ldm.samples(seeds, num_steps, None, f"uncached, {solver} {num_steps}")
    samples = mini_ldm.samples(seeds, num_steps, plan, row)
    change = drift(samples.features, uncached.features, samples.images, uncached.images)
    assert samples.cache is not None
    generation = samples.cache.generations[0]
    metrics = {"macs": generation.macs, "feature_bytes": generation.feature_bytes, **_finite(change)}
    if timing is not None:
        metrics["speedup"] = timing.speedup
    record(
        experiment="prediction",
        row=row,
        settings={
            **_settings(mini_ldm, solver, first_seed),
            "interval": interval,
            "branch": branch,
            "order": order,
            "timing": f"median of {rounds} interleaved rounds of {mini_ldm.timed_batch_size} images, decoding included",
        },
        metrics={**metrics, "tipped_seeds": _tipped_seeds(samples, uncached, seeds)},
    )

    assert generation.full_steps == plan.full_steps
    if order > 0 and interval in thresholds.PREDICTION_INTERVALS:
        reuse = mini_ldm.samples(seeds, num_steps, uniform(num_steps, interval, branch), "reuse")
        before = drift(reuse.features, uncached.features, reuse.images, uncached.images)
        gain = change["psnr_median_db"] - before["psnr_median_db"]
        assert gain >= thresholds.PREDICTION_GAINS_DB
        assert change["mse"] <= before["mse"] * thresholds.PREDICTION_LOSES_NO_MORE_THAN


def test_picture_of_tipped_seeds(pytestconfig: pytest.Config, mini_ldm: Workload, first_seed: int) -> None:
    """TABLES/tipped.png: a column a seed that reuse tips at N = 3; uncached, then orders 0, 1 and 2 downwards."""
    folder = pytestconfig.getoption("tables")
    if folder is None:
        pytest.skip("needs --tables DIR to write to")
    mini_ldm.use("ddim")
    num_steps, seeds = NUM_STEPS["ddim"], range(first_seed, first_seed + NUM_SEEDS)
    plans = [None, *(uniform(num_steps, 3, order=order) for order in (0, 1, 2))]
    uncached, reuse, *others = (mini_ldm.samples(seeds, num_steps, plan, "picture") for plan in plans)
    columns = tipped(reuse.images, uncached.images).nonzero()[0]
    if not len(columns):
        pytest.skip("no seed of this block tips")
    grid = torch.stack([row.images[columns] for row in (uncached, reuse, *others)])  # (rows, columns, 3, H, W)
    rows, width, _, height, side = grid.shape
    pixels = grid.permute(0, 3, 1, 4, 2).reshape(rows * height, width * side, 3)
    picture = Image.fromarray((255 * pixels).round().byte().numpy())
    enlarged = picture.resize((3 * picture.width, 3 * picture.height), Image.Resampling.NEAREST)
    enlarged.save(pytestconfig.invocation_params.dir / folder / "tipped.png")


def _settings(workload: Workload, solver: str, first_seed: int) -> dict[str, Any]:
    return {
        "model": workload.model,
        "weights": "embedded",
        "extractor": "mini-features",
        "device": "cpu",
        "num_threads": torch.get_num_threads(),
        "scheduler": solver,
        "num_steps": NUM_STEPS[solver],
        "guidance_scale": workload.guidance_scale,
        "first_seed": first_seed,
        "num_samples": NUM_SEEDS,
        "macs_convention": str(PAPER),
    }


def _tipped_seeds(samples: Samples, uncached: Samples, seeds: range) -> str:
    return " ".join(str(seeds[i]) for i in tipped(samples.images, uncached.images).nonzero()[0])


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isfinite(value)}

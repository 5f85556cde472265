"""Predicted against reused features (beyond the paper): orders 0, 1 and 2 at the same plan and cost.

The mean over seeds is ruled by the few whose trajectory tips over to another image, so the median and the share of
tipped seeds stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bench.harness import thresholds
from bench.harness.laws import is_judged
from bench.harness.measure import Measure, describe, errors
from bench.harness.pictures import grid
from bench.harness.workload import SOLVERS, Samples, Workload
from deepcache.metrics.fidelity import psnr_each, squared_errors, tipped
from deepcache.results.picture import picture

DISTURBED = 0.01  # of the start noise's standard deviation
CHAOS_SEEDS = 64
PICTURED = 12  # tipped seeds

pytestmark = pytest.mark.shows_images


@pytest.mark.parametrize("order", [0, 1, 2], ids="order={}".format)
@pytest.mark.parametrize("interval", [2, 3, 5, 10], ids="N={}".format)
@pytest.mark.parametrize("solver", SOLVERS)
def test_prediction(
    measure: Measure,
    class_conditional: Workload,
    solver: str,
    interval: int,
    order: int,
    branch: int,
    first_seed: int,
) -> None:
    seeds, uncached = class_conditional.seeds(first_seed), class_conditional.uncached_by(solver)
    own = {"scheduler": solver, "num_steps": uncached.num_steps}
    run = class_conditional.every(interval, branch, order, **own)
    found = measure(
        "prediction",
        f"{solver} {uncached.num_steps}, N={interval}, order {order}",
        class_conditional,
        run,
        uncached,
        seeds,
        timed=False,
        metrics=lambda samples, uncached: {"tipped_seeds": _tipped_seeds(samples, uncached, seeds)},
        settings={"curve": f"{solver}, order {order}", "interval": interval},
    )

    if order > 0 and interval in thresholds.PREDICTION_INTERVALS and is_judged(class_conditional):
        before = measure.change(
            class_conditional.samples(class_conditional.every(interval, branch, **own), seeds, "reuse"), found.uncached
        )
        gain = found.metrics["psnr_median_db"] - before["psnr_median_db"]
        assert gain >= thresholds.PREDICTION_GAINS_DB
        assert found.metrics["mse"] <= before["mse"] * thresholds.PREDICTION_LOSES_NO_MORE_THAN


@pytest.mark.parametrize("solver", SOLVERS)
def test_chaos_without_a_cache(measure: Measure, class_conditional: Workload, solver: str, first_seed: int) -> None:
    """How far a seed moves, uncached, when its start noise does by a hundredth: what no plan can be blamed for."""
    seeds, uncached = class_conditional.seeds(first_seed)[:CHAOS_SEEDS], class_conditional.uncached_by(solver)
    found = measure(
        "prediction",
        f"{solver} {uncached.num_steps}, uncached, start noise moved by {DISTURBED:.0%}",
        class_conditional,
        replace(uncached, disturbed=DISTURBED),
        uncached,
        seeds,
        timed=False,
        metrics=lambda samples, uncached: {"tipped_seeds": _tipped_seeds(samples, uncached, seeds)},
        settings={"curve": f"{solver}, moved start noise"},
    )
    assert found.metrics["mse"] > 0


def test_picture_of_tipped_seeds(record: Callable[..., None], class_conditional: Workload, first_seed: int) -> None:
    """A column a seed that reuse tips at N = 3; uncached, then orders 0, 1 and 2 downwards."""
    seeds, uncached = class_conditional.seeds(first_seed), class_conditional.uncached(scheduler="ddim")
    runs = [uncached, *(class_conditional.every(3, order=order) for order in (0, 1, 2))]
    is_tipped = tipped(squared_errors(*(class_conditional.unmeasured(run, seeds) for run in (runs[1], uncached))))
    columns = is_tipped.nonzero()[0][:PICTURED].tolist()
    if not columns:
        pytest.skip("no seed of this block tips")
    rows = [class_conditional.pictures(run, seeds, columns) for run in runs]
    figure = grid(
        torch.stack(rows),
        columns=[f"seed {seeds[column]}" for column in columns],
        rows=["uncached", "order 0", "order 1", "order 2"],
        under=[
            ["" if images is rows[0] else f"{value:.0f} dB" for value in psnr_each(images, rows[0])] for images in rows
        ],
    )
    alt = "Seeds that reuse turns into another image at N = 3: uncached, reused, predicted with orders 1 and 2."
    record(
        experiment="prediction",
        row="tipped seeds",
        settings=describe(class_conditional, runs[1], uncached, seeds),
        metrics={"tipped": 100 * float(is_tipped.mean())},
        pictures=[picture("tipped", alt, figure)],
    )


def _tipped_seeds(samples: Samples, uncached: Samples, seeds: range) -> str:
    return " ".join(str(seeds[i]) for i in tipped(errors(samples, uncached)).nonzero()[0])

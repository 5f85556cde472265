"""The summary compares predicted with reused features and with fewer steps at equal MACs, for all three models."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.harness.columns import MACS
from bench.harness.laws import PREDICTION_GAINS_DB, PREDICTION_INTERVALS, Judge
from bench.harness.measure import Measure, describe
from bench.harness.requirements import Needs
from bench.harness.workload import Run, Workload
from deepcache.results.layout import Column, Layout

NEEDS = Needs(("class_conditional", "unconditional", "prompted"))
TABLE = Layout(
    "summary",
    title="Summary: at equal MACs, prediction against reuse and against fewer steps",
    look="Look at the last column: above 0, prediction is nearer than both fewer steps and reuse at the same MACs.",
    columns=(
        MACS,
        Column("steps_psnr", "fewer steps (dB)", 1),
        Column("order0_psnr", "order 0 (dB)", 1),
        Column("order1_psnr", "order 1 (dB)", 1),
        Column("order2_psnr", "order 2 (dB)", 1),
        Column("idle_psnr", "idle (dB)", 1),
        Column("gain", "best prediction over the better of both (dB)", 1),
    ),
)

pytestmark = pytest.mark.shows_images


@pytest.mark.parametrize("interval", [2, 3, 5, 10])
@pytest.mark.parametrize("part", ["class_conditional", "unconditional", "prompted"])
def test_summary(
    record: Callable[..., None],
    workload: Callable[..., Workload],
    part: str,
    interval: int,
    judge: Judge,
) -> None:
    found = workload(part)
    uncached, seeds = found.uncached(), found.seeds()
    base = found.samples(uncached, seeds, "uncached")

    def median(run: Run, name: str) -> float:
        return Measure.change(found.samples(run, seeds, name), base)["psnr_median_db"]

    runs = {order: found.every(interval, order=order) for order in (0, 1, 2)}
    orders = {order: median(run, f"N={interval}, order {order}") for order, run in runs.items()}
    fewer = found.fewer(uncached, runs[0])
    steps = median(fewer, f"{fewer.num_steps} steps")
    idle = median(found.idle(runs[0]), f"idle at the MACs of N={interval}")
    gain = max(orders[1], orders[2], idle) - max(orders[0], steps)
    record(
        table=TABLE,
        key={"model": found.model, "interval": interval},
        label=f"{found.model}, N={interval}",
        settings={
            **describe(found, runs[0], uncached, seeds),
            "interval": interval,
            "fewer_steps": fewer.num_steps,
            "measure": "PSNR to the uncached samples of the same seeds, median over seeds",
        },
        metrics={
            "macs": round(found.cost.mean(runs[0].cache_plan)),
            "steps_psnr": steps,
            **{f"order{order}_psnr": value for order, value in orders.items()},
            "idle_psnr": idle,
            "gain": gain,
        },
    )
    if judge(found, when=interval in PREDICTION_INTERVALS):
        assert max(orders[1], orders[2]) - orders[0] >= PREDICTION_GAINS_DB
        assert gain > 0

"""The summary: at equal MACs, predicted features against reused ones and against fewer steps, for all three models."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.harness import thresholds
from bench.harness.laws import is_judged
from bench.harness.measure import Measure, describe
from bench.harness.workload import Run, Workload

pytestmark = pytest.mark.shows_images


@pytest.mark.parametrize("interval", [2, 3, 5, 10])
@pytest.mark.parametrize("part", ["class_conditional", "unconditional", "prompted"])
def test_summary(
    record: Callable[..., None],
    workload: Callable[..., Workload],
    part: str,
    interval: int,
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
    gain = max(orders[1], orders[2]) - max(orders[0], steps)
    assert runs[0].plan is not None
    record(
        experiment="summary",
        row=f"{found.model}, N={interval}",
        settings={
            **describe(found, runs[0], uncached, seeds),
            "interval": interval,
            "fewer_steps": fewer.num_steps,
            "measure": "PSNR to the uncached samples of the same seeds, median over seeds",
        },
        metrics={
            "macs": round(found.cost.mean(runs[0].plan)),
            "steps_psnr": steps,
            **{f"order{order}_psnr": value for order, value in orders.items()},
            "gain": gain,
        },
    )
    if is_judged(found) and interval in thresholds.PREDICTION_INTERVALS:
        assert max(orders[1], orders[2]) - orders[0] >= thresholds.PREDICTION_GAINS_DB
        assert gain > 0

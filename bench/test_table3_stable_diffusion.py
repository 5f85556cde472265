"""Table 3, Tables 13 and 14, Figure 6: Stable Diffusion in the paper, mini-sd here.

CLIP score against throughput: PLMS with 15 to 50 steps, pruned U-Nets, uniform and quadratic plans, predicted
features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import thresholds
from measure import Measure
from workload import Workload

# Table 10's centre over 50 steps, and the power that most of its rows have; they scale with the number of steps.
CENTER, POWER = 15 / 50, 1.4


@pytest.mark.parametrize("steps", range(15, 51, 5), ids="steps={}".format)
def test_plms(measure: Measure, mini_sd: Workload, steps: int) -> None:
    uncached = mini_sd.uncached()
    run = replace(uncached, num_steps=max(2, uncached.num_steps * steps // 50))
    found = measure(
        "table3", f"PLMS {steps} steps", mini_sd, run, uncached, mini_sd.seeds(), settings={"curve": "fewer steps"}
    )
    if run == uncached and uncached.num_steps >= thresholds.ENOUGH_STEPS:
        assert found.metrics["clip_score"] >= thresholds.CLIP_SCORE_OF_MINI_SD


@pytest.mark.parametrize("size", ["base", "small", "tiny"])
def test_pruned(
    measure: Measure,
    mini_sd: Workload,
    workload: Callable[..., Workload],
    size: str,
) -> None:
    pruned = workload(f"mini-bk-{size}")
    run = pruned.uncached()
    measure(
        "table3",
        f"mini-bk-{size}",
        pruned,
        run,
        run,
        pruned.seeds(),
        settings={"curve": "pruned U-Nets"},
        against=mini_sd,
    )


@pytest.mark.parametrize("order", [0, 1, 2], ids="order={}".format)
@pytest.mark.parametrize("interval", range(2, 9), ids="N={}".format)
def test_uniform(measure: Measure, mini_sd: Workload, interval: int, order: int) -> None:
    run = mini_sd.every(interval, order=order)
    found = measure(
        "table3",
        f"uniform N={interval}" + (f", order {order}" if order else ""),
        mini_sd,
        run,
        mini_sd.uncached(),
        mini_sd.seeds(),
        timed=order == 0 or interval == 5,  # an order costs the same at any N
        settings={"curve": f"order {order}", "interval": interval},
    )
    assert found.samples.cache is not None
    assert found.samples.cache.generations[0].full_steps == run.plan.full_steps


@pytest.mark.parametrize("interval", range(2, 9), ids="N={}".format)
def test_quadratic(measure: Measure, mini_sd: Workload, interval: int) -> None:
    uncached = mini_sd.uncached()
    measure(
        "table3",
        f"quadratic N={interval}",
        mini_sd,
        mini_sd.around(CENTER, POWER, interval),
        uncached,
        mini_sd.seeds(),
        settings={"curve": "quadratic, order 0", "interval": interval},
    )

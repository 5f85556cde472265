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
from scales import scale_of
from workload import Workload

# Table 10's centre over 50 steps, and the power that most of its rows have; they scale with the number of steps.
CENTER, POWER = 15 / 50, 1.4


@pytest.mark.parametrize("steps", range(15, 51, 5), ids="steps={}".format)
def test_plms(measure: Measure, prompted: Workload, steps: int) -> None:
    uncached = prompted.uncached()
    run = replace(uncached, num_steps=max(2, uncached.num_steps * steps // 50))
    found = measure(
        "table3", f"PLMS {steps} steps", prompted, run, uncached, prompted.seeds(), settings={"curve": "fewer steps"}
    )
    if run == uncached and prompted.is_mini and uncached.num_steps >= thresholds.ENOUGH_STEPS:
        assert found.metrics["clip_score"] >= thresholds.CLIP_SCORE_OF_MINI_SD


@pytest.mark.parametrize("size", ["base", "small", "tiny"])
def test_pruned(
    measure: Measure,
    prompted: Workload,
    workload: Callable[..., Workload],
    pytestconfig: pytest.Config,
    size: str,
) -> None:
    pruned = workload(scale_of(pytestconfig).pruned[size])
    run = pruned.uncached()
    measure(
        "table3",
        pruned.model,
        pruned,
        run,
        run,
        pruned.seeds(),
        settings={"curve": "pruned U-Nets"},
        against=prompted,
    )


@pytest.mark.parametrize("order", [0, 1, 2], ids="order={}".format)
@pytest.mark.parametrize("interval", range(2, 9), ids="N={}".format)
def test_uniform(measure: Measure, prompted: Workload, interval: int, order: int) -> None:
    run = prompted.every(interval, order=order)
    measure(
        "table3",
        f"uniform N={interval}" + (f", order {order}" if order else ""),
        prompted,
        run,
        prompted.uncached(),
        prompted.seeds(),
        settings={"curve": f"order {order}", "interval": interval},
    )


@pytest.mark.parametrize("interval", range(2, 9), ids="N={}".format)
def test_quadratic(measure: Measure, prompted: Workload, interval: int) -> None:
    uncached = prompted.uncached()
    measure(
        "table3",
        f"quadratic N={interval}",
        prompted,
        prompted.around(CENTER, POWER, interval),
        uncached,
        prompted.seeds(),
        settings={"curve": "quadratic, order 0", "interval": interval},
    )

"""Table 3, Tables 13 and 14, Figure 6: Stable Diffusion in the paper, mini-sd here.

CLIP score against throughput: PLMS with 15 to 50 steps, pruned U-Nets, uniform and quadratic plans, predicted
features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.harness import thresholds
from bench.harness.laws import assert_clip_score_is_kept, assert_falls, is_judged, medians_db, skip_unless_judged
from bench.harness.measure import Found, Measure
from bench.harness.scales import scale_of
from bench.harness.workload import Workload

# Table 10's centre over 50 steps, and the power that most of its rows have; they scale with the number of steps.
CENTER, POWER = 15 / 50, 1.4
STRIDES = (2, 3, 5, 8)


@pytest.mark.parametrize("steps", range(15, 51, 5), ids="steps={}".format)
def test_plms(measure: Measure, prompted: Workload, steps: int) -> None:
    uncached = prompted.uncached()
    run = replace(uncached, num_steps=max(2, uncached.num_steps * steps // 50))
    found = measure(
        "table3", f"PLMS {steps} steps", prompted, run, uncached, prompted.seeds(), settings={"curve": "fewer steps"}
    )
    if run == uncached and is_judged(prompted):
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
    found = measure(
        "table3",
        pruned.model,
        pruned,
        run,
        run,
        pruned.seeds(),
        settings={"curve": "pruned U-Nets"},
        against=prompted,
    )
    assert pruned.cost.full() < prompted.cost.full()
    if is_judged(pruned):
        assert found.metrics["clip_score"] >= thresholds.CLIP_SCORE_OF_MINI_SD


@pytest.mark.parametrize("order", [0, 1, 2], ids="order={}".format)
@pytest.mark.parametrize("interval", range(2, 9), ids="N={}".format)
def test_uniform(measure: Measure, prompted: Workload, interval: int, order: int) -> None:
    run = prompted.every(interval, order=order)
    found = measure(
        "table3",
        f"uniform N={interval}" + (f", order {order}" if order else ""),
        prompted,
        run,
        prompted.uncached(),
        prompted.seeds(),
        settings={"curve": f"order {order}", "interval": interval},
    )
    _assert_clip_score(prompted, found, interval)


@pytest.mark.parametrize("interval", range(2, 9), ids="N={}".format)
def test_quadratic(measure: Measure, prompted: Workload, interval: int) -> None:
    uncached = prompted.uncached()
    found = measure(
        "table3",
        f"quadratic N={interval}",
        prompted,
        prompted.around(CENTER, POWER, interval),
        uncached,
        prompted.seeds(),
        settings={"curve": "quadratic, order 0", "interval": interval},
    )
    _assert_clip_score(prompted, found, interval)


@pytest.mark.shows_images
@pytest.mark.parametrize("curve", ["order 0", "order 1", "order 2", "quadratic", "PLMS"])
def test_table3_fidelity_falls_along_a_curve(prompted: Workload, curve: str) -> None:
    skip_unless_judged(prompted)
    uncached = prompted.uncached()
    if curve == "PLMS":
        runs = [replace(uncached, num_steps=uncached.num_steps * steps // 50) for steps in (40, 25, 20, 15)]
    elif curve == "quadratic":
        runs = [prompted.around(CENTER, POWER, interval) for interval in STRIDES]
    else:
        runs = [prompted.every(interval, order=int(curve.removeprefix("order "))) for interval in STRIDES]
    assert_falls(medians_db(prompted, uncached, runs))


@pytest.mark.shows_images
@pytest.mark.parametrize("interval", thresholds.PREDICTION_INTERVALS, ids="N={}".format)
def test_table3_prediction_is_nearer_and_keeps_a_feature_more_an_order(prompted: Workload, interval: int) -> None:
    skip_unless_judged(prompted)
    runs = [prompted.every(interval, order=order) for order in (0, 1, 2)]
    reuse, *predicted = medians_db(prompted, prompted.uncached(), runs)
    assert min(predicted) - reuse >= thresholds.PREDICTION_GAINS_DB
    caches = [prompted.samples(run, prompted.seeds()).cache for run in runs]
    if None not in caches:  # as where a store had the samples
        kept = [cache.generations[0].feature_bytes for cache in caches]
        assert kept == [kept[0], 2 * kept[0], 3 * kept[0]]


def _assert_clip_score(prompted: Workload, found: Found, interval: int) -> None:
    if is_judged(prompted) and interval in thresholds.CLIP_INTERVALS:
        assert_clip_score_is_kept(found.metrics["clip_score"], found.uncached.clip_scores)

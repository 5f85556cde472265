"""Tables 3, 13 and 14 and Figure 6 measure text to image: Stable Diffusion in the paper, mini-sd here.

The rows compare CLIP score with throughput for PLMS with 15 to 50 steps, pruned U-Nets, uniform and quadratic plans,
and predicted features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.harness.columns import CLIP, COCO, MEDIAN, PARTI, PSNR, SPEED, of_the_paper
from bench.harness.laws import (
    CLIP_SCORE_OF_MINI_SD,
    PREDICTION_GAINS_DB,
    PREDICTION_INTERVALS,
    Judge,
    assert_clip_score_is_kept,
    assert_falls,
    medians_db,
    skip_unless_judged,
)
from bench.harness.measure import Found, Measure
from bench.harness.requirements import Needs
from bench.harness.scales import scale_of
from bench.harness.workload import Workload
from deepcache.plan import DEFAULT_ORDER, IDLE
from deepcache.results.layout import Layout, Plot, Published, Scalar

NEEDS = Needs(("prompted", "pruned"))
SIZES = ("base", "small", "tiny")


def _published(data_set: str, label: str, table: str, **settings: Scalar) -> tuple[Published, ...]:
    """Return the published rows of a set of prompts; BK-SDM stands in Table 3."""
    own = {"prompts": settings["prompts"]} if data_set == PARTI else {}
    protocol: dict[str, Scalar] = {
        "model": "sd-1.5",
        "uncached_steps": 50,
        "guidance_scale": 7.5,
        "clip": "ViT-g-14/laion2b_s34b_b88k",
        **settings,
    }
    where = {"table": table, "dataset": data_set}
    label = f"Stable Diffusion v1.5, branch 1, PLMS 50 steps, {label}, one RTX 2080"
    plans = {"uniform": "DeepCache uniform", "quadratic": "DeepCache nonuniform"}
    return (
        *of_the_paper(
            label,
            protocol,
            [
                *(({"method": "PLMS", "steps": n, **own}, {"method": "PLMS", "steps": n, **where}) for n in STEPS),
                *(
                    (
                        {"method": method, "interval": n, "order": 0, **own},
                        {"method": theirs, "interval": n, **where},
                    )
                    for method, theirs in plans.items()
                    for n in INTERVALS
                ),
            ],
        ),
        *(
            row
            for size in SIZES
            for row in of_the_paper(
                label,
                {**protocol, "model": f"bk-sdm-{size}"},
                [
                    (
                        {"method": "pruned", "size": size, **own},
                        {"table": "Table 3", "method": f"BK-SDM - {size.capitalize()}", "dataset": data_set},
                    )
                ],
            )
        ),
    )


STEPS = range(15, 51, 5)
INTERVALS = range(2, 9)
TABLE = Layout(
    "table3",
    title="Table 3, Tables 13 and 14, Figure 6: text to image against fewer steps and pruned U-Nets",
    look="Compare rows of about one speedup: fewer steps, a pruned U-Net, and a plan.",
    columns=(*SPEED, CLIP, PSNR, MEDIAN),
    published=(  # rows of PartiPrompts stand beside Table 13, rows of all other prompts beside Table 14
        *_published(PARTI, "1,632 PartiPrompts", "Table 13", prompts="PartiPrompts.tsv", num_samples=1_632),
        *_published(COCO, "5,000 captions of COCO", "Table 14", prompts="captions_val2017.json", num_samples=5_000),
    ),
    plot=Plot("throughput", "clip_score", "images/s", "CLIP score"),
    number=3,
)
# At these intervals caching must keep the CLIP score.
CLIP_INTERVALS = (2, 3, 4, 5)

# Table 10's centre over 50 steps, and the power that most of its rows have; they scale with the number of steps.
CENTER, POWER = 15 / 50, 1.4
STRIDES = (2, 3, 5, 8)
TIMED = 5  # the interval whose rows of every kind are timed; elsewhere rows of as many full steps cost what reuse costs
IDLE_INTERVALS = (3, 5)


@pytest.mark.parametrize("steps", STEPS, ids="steps={}".format)
def test_plms(measure: Measure, prompted: Workload, steps: int, judge: Judge) -> None:
    uncached = prompted.uncached()
    run = replace(uncached, num_steps=max(2, uncached.num_steps * steps // 50))
    found = measure(
        TABLE,
        {"method": "PLMS", "steps": steps, **_prompts(prompted)},
        prompted,
        run,
        uncached,
        prompted.seeds(),
        label=f"PLMS {steps} steps",
        settings={"curve": "fewer steps"},
    )
    if judge(prompted, when=run == uncached):
        assert found.metrics["clip_score"] >= CLIP_SCORE_OF_MINI_SD


@pytest.mark.parametrize("size", SIZES)
def test_pruned(
    measure: Measure,
    prompted: Workload,
    workload: Callable[..., Workload],
    pytestconfig: pytest.Config,
    size: str,
    judge: Judge,
) -> None:
    pruned = workload(scale_of(pytestconfig).pruned[size])
    run = pruned.uncached()
    found = measure(
        TABLE,
        {"method": "pruned", "size": size, **_prompts(pruned)},
        pruned,
        run,
        run,
        pruned.seeds(),
        label=pruned.model,
        settings={"curve": "pruned U-Nets"},
        against=prompted,
    )
    assert pruned.cost.full() < prompted.cost.full()
    if judge(pruned):
        assert found.metrics["clip_score"] >= CLIP_SCORE_OF_MINI_SD


@pytest.mark.parametrize("order", [0, 1, 2], ids="order={}".format)
@pytest.mark.parametrize("interval", INTERVALS, ids="N={}".format)
def test_uniform(measure: Measure, prompted: Workload, interval: int, order: int, judge: Judge) -> None:
    run = prompted.every(interval, order=order)
    found = measure(
        TABLE,
        {"method": "uniform", "interval": interval, "order": order, **_prompts(prompted)},
        prompted,
        run,
        prompted.uncached(),
        prompted.seeds(),
        label=f"uniform N={interval}" + (f", order {order}" if order else ""),
        timed=order == 0 or interval == TIMED,
        settings={"curve": f"order {order}", "interval": interval},
    )
    _assert_clip_score(prompted, found, interval, judge)


@pytest.mark.parametrize("interval", IDLE_INTERVALS, ids="N={}".format)
def test_idle(measure: Measure, prompted: Workload, interval: int, judge: Judge) -> None:
    found = measure(
        TABLE,
        {"method": "uniform", "interval": interval, "order": DEFAULT_ORDER, "branch": IDLE, **_prompts(prompted)},
        prompted,
        prompted.every(interval, IDLE, DEFAULT_ORDER),
        prompted.uncached(),
        prompted.seeds(),
        label=f"uniform N={interval}, idle",
        settings={"curve": "idle", "interval": interval},
    )
    _assert_clip_score(prompted, found, interval, judge)


@pytest.mark.parametrize("interval", INTERVALS, ids="N={}".format)
def test_quadratic(measure: Measure, prompted: Workload, interval: int, judge: Judge) -> None:
    uncached = prompted.uncached()
    found = measure(
        TABLE,
        {"method": "quadratic", "interval": interval, "order": 0, **_prompts(prompted)},
        prompted,
        prompted.around(CENTER, POWER, interval),
        uncached,
        prompted.seeds(),
        label=f"quadratic N={interval}",
        timed=interval == TIMED,
        settings={"curve": "quadratic, order 0", "interval": interval},
    )
    _assert_clip_score(prompted, found, interval, judge)


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
@pytest.mark.parametrize("interval", PREDICTION_INTERVALS, ids="N={}".format)
def test_table3_prediction_is_nearer_and_keeps_a_feature_more_an_order(prompted: Workload, interval: int) -> None:
    skip_unless_judged(prompted)
    runs = [prompted.every(interval, order=order) for order in (0, 1, 2)]
    reuse, *predicted = medians_db(prompted, prompted.uncached(), runs)
    assert min(predicted) - reuse >= PREDICTION_GAINS_DB
    caches = [prompted.samples(run, prompted.seeds()).cache for run in runs]
    if None not in caches:  # as where a store had the samples
        kept = [cache.generations[0].feature_bytes for cache in caches]
        assert kept == [kept[0], 2 * kept[0], 3 * kept[0]]


def _prompts(workload: Workload) -> dict[str, str]:
    """Return the part of a key that names the file of the prompts; embedded models have no such file."""
    return {} if workload.prompts_from is None else {"prompts": workload.prompts_from}


def _assert_clip_score(prompted: Workload, found: Found, interval: int, judge: Judge) -> None:
    if judge(prompted, when=interval in CLIP_INTERVALS):
        assert_clip_score_is_kept(found.metrics["clip_score"], found.uncached.clip_scores)

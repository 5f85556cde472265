"""Table 2 measures unconditional generation in pixel space: DDPM on CIFAR-10 and LSUN in the paper, mini-ddpm here.

CIFAR-10 is sampled on quadratic timesteps, LSUN on uniform ones; both at branch 2.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.harness.columns import (
    BEDROOM,
    CHURCH,
    CIFAR,
    DDPM,
    DRIFT,
    FID,
    MEDIAN,
    PSNR,
    SPEED,
    of_the_paper,
)
from bench.harness.laws import (
    SAME_IMAGE_DB,
    Judge,
    assert_falls,
    macs_rule_time,
    medians_db,
    skip_unless_judged,
    speedup_in_pixels,
)
from bench.harness.measure import Found, Measure
from bench.harness.requirements import Needs
from bench.harness.scales import SCALES, scale_of
from bench.harness.workload import Run, Workload
from deepcache.plan import DEFAULT_ORDER, IDLE
from deepcache.results.layout import Layout, Published

NEEDS = Needs(("pixels",), real_images=True)
INTERVALS = (2, 3, 5, 10)
IDLE_INTERVAL = 5
BESIDE = {  # the paper's data set and model beside the rows of a name
    "quadratic timesteps": (CIFAR, "ddpm-cifar10"),
    "uniform timesteps": (BEDROOM, "ddpm-bedroom"),
    "CIFAR-10": (CIFAR, "ddpm-cifar10"),
    "LSUN-Bedroom": (BEDROOM, "ddpm-bedroom"),
    "LSUN-Church": (CHURCH, "ddpm-church"),
}


def _published(name: str, model: str, scheduler: str) -> tuple[Published, ...]:
    """Return the published rows of a data set; those of LSUN have no N = 10."""
    data_set, theirs = BESIDE[name]
    methods = {1: "DDPM*", **{n: f"DeepCache uniform - N={n}" for n in INTERVALS if n < 10 or data_set == CIFAR}}
    return of_the_paper(
        "DDPM, branch 2, DDIM 100 steps (CIFAR-10: quadratic timesteps, LSUN-Bedroom: uniform), RTX 2080",
        {**DDPM, "model": theirs},
        [
            (
                {"model": model, "solver": scheduler, "interval": n},
                {"table": "Table 2", "method": method, "dataset": data_set},
            )
            for n, method in methods.items()
        ],
    )


TABLE = Layout(
    "table2",
    title="Table 2: unconditional generation in pixel space",
    look="Compare the course of FID and speedup down the column with the paper's, not the values.",
    columns=(*SPEED, FID, PSNR, MEDIAN, DRIFT),
    published=tuple(
        row
        for scale in SCALES.values()
        for name, (model, scheduler) in scale.pixels.items()
        for row in _published(name, model, scheduler)
    ),
    number=2,
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("name", list(scale_of(metafunc.config).pixels))


@pytest.mark.parametrize("interval", [1, *INTERVALS], ids="N={}".format)
def test_table2(
    measure: Measure,
    workload: Callable[..., Workload],
    pytestconfig: pytest.Config,
    name: str,
    interval: int,
    judge: Judge,
) -> None:
    model, scheduler = scale_of(pytestconfig).pixels[name]
    pixels = workload(model)
    run = pixels.uncached(scheduler=scheduler) if interval == 1 else pixels.every(interval, scheduler=scheduler)
    label = f"{name}, " + ("uncached" if interval == 1 else f"N={interval}")
    found = _row(measure, pixels, run, {"interval": interval}, label, interval, judge)
    if judge(pixels, when=interval == 2):
        assert found.metrics["psnr_median_db"] >= SAME_IMAGE_DB


def test_table2_idle(
    measure: Measure, workload: Callable[..., Workload], pytestconfig: pytest.Config, name: str, judge: Judge
) -> None:
    model, scheduler = scale_of(pytestconfig).pixels[name]
    pixels = workload(model)
    run = pixels.every(IDLE_INTERVAL, IDLE, DEFAULT_ORDER, scheduler=scheduler)
    # a key with "interval" would have the paper's row of that interval beneath it
    key = {"idle_interval": IDLE_INTERVAL}
    _row(measure, pixels, run, key, f"{name}, N={IDLE_INTERVAL}, idle", IDLE_INTERVAL, judge)


def _row(
    measure: Measure, pixels: Workload, run: Run, key: dict[str, int], label: str, interval: int, judge: Judge
) -> Found:
    """Measure a row, and hold its speedup against its MACs."""
    found = measure(
        TABLE,
        {"model": pixels.model, "solver": run.scheduler, **key},
        pixels,
        run,
        pixels.uncached(scheduler=run.scheduler),
        pixels.seeds(),
        label=label,
        with_quality=True,
        settings={"interval": interval},
    )
    if run.plan is not None and found.timing is not None and macs_rule_time(pixels) and judge(pixels):
        speedup, least = found.timing.speedup, speedup_in_pixels(pixels.cost.ratio(run.cache_plan))
        assert speedup >= least
    return found


@pytest.mark.shows_images
def test_table2_fidelity_falls_with_the_interval(
    workload: Callable[..., Workload], pytestconfig: pytest.Config, name: str
) -> None:
    model, scheduler = scale_of(pytestconfig).pixels[name]
    pixels = workload(model)
    skip_unless_judged(pixels)
    runs = [pixels.every(interval, scheduler=scheduler) for interval in INTERVALS]
    assert_falls(medians_db(pixels, pixels.uncached(scheduler=scheduler), runs))

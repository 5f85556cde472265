"""Table 2: unconditional generation in pixel space: DDPM on CIFAR-10 and LSUN in the paper, mini-ddpm here.

CIFAR-10 is sampled on quadratic timesteps, LSUN on uniform ones; both at branch 2.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.harness import thresholds
from bench.harness.laws import assert_falls, is_judged, medians_db, skip_unless_judged
from bench.harness.measure import Measure
from bench.harness.scales import scale_of
from bench.harness.workload import Workload

INTERVALS = (2, 3, 5, 10)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("name", list(scale_of(metafunc.config).pixels))


@pytest.mark.parametrize("interval", [1, *INTERVALS], ids="N={}".format)
def test_table2(
    measure: Measure,
    workload: Callable[..., Workload],
    pytestconfig: pytest.Config,
    name: str,
    interval: int,
) -> None:
    model, scheduler = scale_of(pytestconfig).pixels[name]
    pixels = workload(model)
    uncached = pixels.uncached(scheduler=scheduler)
    run = uncached if interval == 1 else pixels.every(interval, scheduler=scheduler)
    found = measure(
        "table2",
        f"{name}, " + ("uncached" if interval == 1 else f"N={interval}"),
        pixels,
        run,
        uncached,
        pixels.seeds(),
        with_quality=True,
        settings={"interval": interval},
    )
    if run.plan is None or not is_judged(pixels):
        return
    if found.timing is not None and thresholds.macs_rule_time(pixels):
        assert found.timing.speedup >= thresholds.speedup_in_pixels(pixels.cost.ratio(run.plan))
    if interval == 2:
        assert found.metrics["psnr_median_db"] >= thresholds.SAME_IMAGE_DB


@pytest.mark.shows_images
def test_table2_fidelity_falls_with_the_interval(
    workload: Callable[..., Workload], pytestconfig: pytest.Config, name: str
) -> None:
    model, scheduler = scale_of(pytestconfig).pixels[name]
    pixels = workload(model)
    skip_unless_judged(pixels)
    runs = [pixels.every(interval, scheduler=scheduler) for interval in INTERVALS]
    assert_falls(medians_db(pixels, pixels.uncached(scheduler=scheduler), runs))

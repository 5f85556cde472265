"""The layer-wise ablation (course project, 4.2) measures speedup, CLIP score and memory of every branch at N = 5."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from bench.harness.columns import CLIP, FEATURE, MACS, PSNR, SPEEDUP
from bench.harness.laws import Judge, assert_clip_score_is_kept
from bench.harness.measure import Measure
from bench.harness.memory import PeakMemory
from bench.harness.requirements import Needs
from bench.harness.scales import scale_of
from bench.harness.workload import Run, Workload
from deepcache.cache.caching import Cache
from deepcache.models.architectures import architecture
from deepcache.plan import IDLE
from deepcache.results.layout import Column, Layout, Plot

NEEDS = Needs(("prompted",))
TABLE = Layout(
    "layerwise",
    title="Layer-wise ablation (course project, 4.2): every skip at N = 5; at branch -1 none is live",
    look="Compare MACs with PSNR from branch to branch: a deeper branch costs more on every shallow step.",
    columns=(MACS, SPEEDUP, CLIP, PSNR, FEATURE, Column("peak_bytes", "peak memory (MiB)", 1, scale=2**20)),
    plot=Plot("speedup", "clip_score", "speedup", "CLIP score"),
)
INTERVAL = 5
MEASURED_STEPS, MEASURED_IMAGES = 6, 4  # memory is measured over a full step, shallow steps, and a full step again
# While a full step makes the feature, the old one still stands: caching holds at most two more than the uncached run.
FEATURES_HELD_AT_ONCE = 2
# Timesteps and embeddings are a thousandth of what a step holds, and differ between full and shallow steps.
SMALL_TENSORS = 1.01


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    branches = range(IDLE, architecture(scale_of(metafunc.config).prompted).num_branches)
    metafunc.parametrize("skip", [None, *branches], ids=lambda b: "uncached" if b is None else f"branch={b}")


def test_layerwise(measure: Measure, prompted: Workload, skip: int | None, judge: Judge) -> None:
    uncached = prompted.uncached()
    run = uncached if skip is None else prompted.every(INTERVAL, skip)
    short = replace(uncached, num_steps=MEASURED_STEPS)
    if skip is not None:
        short = prompted.every(INTERVAL, skip, num_steps=MEASURED_STEPS)

    def held(*_: object) -> dict[str, float]:
        peak, used = _held(prompted, short)
        feature = {} if used is None else {"feature_bytes": used.generations[0].feature_bytes}
        return {"peak_bytes": peak, **feature}

    found = measure(
        TABLE,
        {"method": "uncached"} if skip is None else {"method": "uniform", "branch": skip},
        prompted,
        run,
        uncached,
        prompted.seeds(),
        label="uncached" if skip is None else f"branch {skip}",
        settings={
            "interval": 1 if skip is None else INTERVAL,
            "curve": "uncached" if skip is None else f"N={INTERVAL}",
            "memory": f"of {MEASURED_IMAGES} images, {MEASURED_STEPS} steps",
        },
        metrics=held,
    )
    if skip is not None:
        uncached_peak, _ = _held(prompted, replace(short, plan=None))
        features = FEATURES_HELD_AT_ONCE * found.metrics["feature_bytes"]
        assert found.metrics["peak_bytes"] <= SMALL_TENSORS * uncached_peak + features
    if judge(prompted, when=skip is not None):
        assert_clip_score_is_kept(found.metrics["clip_score"], found.uncached.clip_scores)


@cache
def _held(prompted: Workload, run: Run) -> tuple[int, Cache | None]:
    """Return the most bytes that the U-Net and its cache hold, which rows share; decoding would take more."""
    with PeakMemory() as memory:
        _, found = prompted.images(
            run, range(MEASURED_IMAGES), batch_size=MEASURED_IMAGES, progress=False, output_type="latent"
        )
    return memory.peak, found

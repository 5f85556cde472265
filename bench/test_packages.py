"""Speed of U-Nets of other packages at their published sizes (beyond the paper): random weights, against the MACs.

`pytest bench` leaves this file out, since its packages are installed by `tox -e families` alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from tqdm import tqdm

import deepcache
from bench.harness.columns import SPEEDUP
from bench.harness.measure import NOT_MEASURED
from bench.harness.packages import require, seeded
from bench.harness.requirements import Needs
from deepcache.costs.macs import EVERYTHING, cost
from deepcache.plan import uniform
from deepcache.results.layout import Column, Layout

NEEDS = Needs(())
TABLE = Layout(
    "packages",
    title="Speed of U-Nets of other packages: shallow steps at branch 0, against their MACs",
    columns=(
        Column("latency_s", "U-Net of a generation (s)", 3),
        SPEEDUP,
        Column("macs_bound", "bound by MACs", 2),
        Column("bound_share", "of the bound (%)", 1, scale=0.01),
    ),
)
RACED = ("lucidrains, images", "MONAI, 3D", "lerobot's policy")
INTERVALS, NUM_STEPS, BRANCH, ORDER = (3, 5), 15, 0, 1
LEAST_ROUNDS = 5
# Convolutions of few channels, as on the outermost stages, reach fewer operations a second than the deep ones that are
# left out, and the library's own Python adds to every step.
LEAST_OF_THE_BOUND = 0.5

pytestmark = pytest.mark.named_alone


@pytest.mark.parametrize("interval", INTERVALS, ids="N={}".format)
@pytest.mark.parametrize("name", RACED)
def test_packages(
    benchmark: Any, record: Callable[..., None], pytestconfig: pytest.Config, name: str, interval: int
) -> None:
    package = require(name)
    unet, batch = seeded(package.published)
    call = tuple(each[:1] for each in batch)
    plan = uniform(NUM_STEPS, interval, BRANCH, ORDER)
    bound = cost(unet, *call).ratio(plan)
    rounds = max(pytestconfig.getoption("rounds"), LEAST_ROUNDS) if benchmark.enabled else 1
    uncached: list[float] = []
    ours: list[float] = []

    def race() -> None:
        uncached.append(_seconds(unet, call))
        with deepcache.cached(unet, plan, num_steps=NUM_STEPS):
            _seconds(unet, call)  # its first call is watched, and its first shallow step is proven
            ours.append(_seconds(unet, call))
        bar.update()

    with tqdm(total=rounds, desc=f"{name}, N={interval}", unit="round", disable=None, leave=False) as bar:
        benchmark.pedantic(race, rounds=rounds)
    speedup = statistics.median(before / after for before, after in zip(uncached, ours, strict=True))
    speed = {"latency_s": statistics.median(ours), "speedup": speedup, "bound_share": speedup / bound}
    record(
        table=TABLE,
        key={"package": name, "interval": interval},
        label=f"{name}, N={interval}",
        settings={
            "model": f"{package.package} {package.version}, {type(unet).__name__}, random weights",
            "extractor": "none",
            "batch_size": 1,
            "num_steps": NUM_STEPS,
            "interval": interval,
            "branch": BRANCH,
            "order": ORDER,
            "macs_convention": str(EVERYTHING),
            "timing": f"medians of {rounds} interleaved rounds of the U-Net's calls"
            if benchmark.enabled
            else NOT_MEASURED,
        },
        metrics={"macs_bound": bound, **(speed if benchmark.enabled else {})},
    )
    if benchmark.enabled:
        assert speed["bound_share"] >= LEAST_OF_THE_BOUND


@torch.no_grad()
def _seconds(unet: Any, call: tuple[Tensor, ...]) -> float:
    """Return the time of the U-Net's calls in a generation, each with a timestep of its own."""
    sample, timestep, *rest = call
    is_timestep = timestep.numel() == 1  # else it is an embedding
    started = time.perf_counter()
    for step in range(NUM_STEPS):
        unet(sample, timestep - step if is_timestep else timestep, *rest)
    return time.perf_counter() - started

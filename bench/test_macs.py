"""MACs profiling: every real architecture against the paper's columns, every layer as a picture; and what a shallow
step of the embedded models takes of a full one's time, beside its share of the MACs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import thresholds
import torch
from matplotlib.figure import Figure
from measure import NOT_MEASURED
from scales import scale_of
from workload import Workload

from deepcache.example import example
from deepcache.forward import full_forward, shallow_forward
from deepcache.macs import EVERYTHING
from deepcache.models.architectures import ARCHITECTURES, architecture
from deepcache.plan import uniform
from deepcache.results import published
from deepcache.results.experiments import MACS_TABLE
from deepcache.results.picture import picture
from deepcache.views import Cut

# The paper's branch and steps, and the digits that its column has.
PAPER = {
    "ldm-4-g": (0, 250, 2),
    "ddpm-cifar10": (2, 100, 1),
    "ddpm-lsun": (2, 100, 1),
    **dict.fromkeys(("sd-1.5", "bk-sdm-base", "bk-sdm-small", "bk-sdm-tiny"), (1, 50, 2)),
}
BATCH = 8
WARM_UP, ROUNDS = 3, 40


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "skip" in metafunc.fixturenames:
        models = scale_of(metafunc.config).unpruned
        cases = [(name, branch) for name in models for branch in range(architecture(name).num_branches)]
        metafunc.parametrize(("name", "skip"), cases)


@pytest.mark.parametrize("row", MACS_TABLE.rows)
def test_macs_of_the_paper(record: Callable[..., None], row: str) -> None:
    name, interval = row.split(", N=")[0], int(row.split(", N=")[1])
    branch, num_steps, digits = PAPER[name]
    known = architecture(name)
    cost = known.cost()
    mean = cost.mean(uniform(num_steps, interval, branch), known.convention)
    record(
        experiment="macs",
        row=row,
        settings={"model": name, "branch": branch, "interval": interval, "num_steps": num_steps}
        | {"extractor": "none", "macs_convention": str(known.convention)},
        metrics={
            "macs": round(mean),
            "macs_full": cost.full(known.convention),
            "macs_shallow": cost.shallow(branch, known.convention),
            "macs_share": cost.shallow(branch, known.convention) / cost.full(known.convention),
        },
    )
    theirs = published.row(**MACS_TABLE.rows[row])["macs_g"]
    assert float(mean) / 1e9 == pytest.approx(theirs, abs=10**-digits)  # some are cut off rather than rounded


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_macs_of_every_layer(record: Callable[..., None], name: str) -> None:
    known = architecture(name)
    cost = known.cost()
    stages = cost.stages
    figure = Figure(figsize=(6.4, 0.17 * len(stages) + 0.9), layout="constrained")
    axis = figure.subplots()
    labels = [stage.name for stage in stages]
    axis.barh(labels, [stage.total(known.convention) / 1e9 for stage in stages], label="counted by the paper")
    left = [stage.total(known.convention) / 1e9 for stage in stages]
    axis.barh(labels, [stage.attention / 1e9 for stage in stages], left=left, label="attention products")
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.set_xlim(0, 1.05 * max(stage.total(EVERYTHING) for stage in stages) / 1e9)
    axis.tick_params(labelsize=6)
    axis.set_xlabel("GMACs on one sample")
    axis.legend(fontsize=7)
    record(
        experiment="macs",
        row=f"{name}, by layer",
        settings={"model": name, "extractor": "none", "macs_convention": str(known.convention)},
        metrics={"macs_full": cost.full(known.convention)},
        pictures=[picture(f"macs-{name}", f"{name}: MACs of every stage, from the first to the last.", figure)],
    )


def test_share_of_a_shallow_step(
    benchmark: Any, record: Callable[..., None], workload: Callable[..., Workload], name: str, skip: int
) -> None:
    found = workload(name)
    unet, cost = found.pipe.unet, found.cost
    cut = Cut.of(unet, skip)
    args, kwargs = example(unet, context_tokens=architecture(name).context_tokens or None)
    args = tuple(_filled(value, unet) for value in args)
    with torch.no_grad(), _counted(unet) as ran:
        _, feature = full_forward(unet, cut, *args, **kwargs)
        num_full = len(ran)
        shallow_forward(unet, cut, feature, *args, **kwargs)
    shares = _shares(unet, cut, args, kwargs) if benchmark.enabled else []
    benchmark.pedantic(lambda: None)
    metrics = {
        "macs_full": cost.full(),
        "macs_shallow": cost.shallow(skip),
        "macs_share": cost.shallow(skip) / cost.full(),
        "modules_full": num_full,
        "modules_shallow": len(ran) - num_full,
    }
    if shares:
        metrics["shallow_share"] = statistics.median(shares)
    record(
        experiment="macs",
        row=f"{name}, branch {skip}",
        settings={"model": name, "branch": skip, "extractor": "none", "device": found.device_name}
        | {"timing": f"median of {ROUNDS} interleaved pairs of steps on {BATCH} samples" if shares else NOT_MEASURED},
        metrics=metrics,
    )
    if shares:
        assert metrics["shallow_share"] <= metrics["macs_share"] + thresholds.SHALLOW_STEP_TAKES_BEYOND_ITS_MACS


@contextmanager
def _counted(unet: Any) -> Iterator[list[Any]]:
    """Within the block, the modules without children that ran, in order."""
    ran: list[Any] = []
    leaves = [module for module in unet.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(lambda module, args, output: ran.append(module)) for leaf in leaves]  # noqa: ARG005
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _shares(unet: Any, cut: Cut, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[float]:
    """Time of a shallow step over that of a full step, a pair a round."""
    found, device = [], unet.device  # which takes diffusers a while to find
    for number in range(WARM_UP + ROUNDS):
        started = _now(device)
        _, feature = full_forward(unet, cut, *args, **kwargs)
        between = _now(device)
        shallow_forward(unet, cut, feature, *args, **kwargs)
        ended = _now(device)
        if number >= WARM_UP:
            found.append((ended - between) / (between - started))
    return found


def _now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _filled(value: Any, unet: Any) -> Any:
    """A batch of random inputs in the place of one sample on the meta device."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value if not isinstance(value, torch.Tensor) else torch.tensor(500)
    filled = torch.randn(BATCH, *value.shape[1:], generator=torch.Generator().manual_seed(0))
    return filled.to(unet.device, unet.dtype)

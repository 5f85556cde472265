"""MACs profiling: every real architecture against the paper's columns; and what a shallow step of the embedded models
takes of a full one's time, beside its share of the MACs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from bench.harness import thresholds
from bench.harness.measure import NOT_MEASURED, conditions
from bench.harness.scales import scale_of
from bench.harness.workload import Workload
from deepcache.models.architectures import architecture
from deepcache.plan import uniform
from deepcache.results import published
from deepcache.results.experiments import MACS_TABLE
from deepcache.unets.diffusers.forward import full_forward, shallow_forward
from deepcache.unets.diffusers.inputs import example
from deepcache.unets.diffusers.views import Cut

# The paper's branch and steps.
PAPER = {
    "ldm-4-g": (0, 250),
    "ddpm-cifar10": (2, 100),
    "ddpm-lsun": (2, 100),
    **dict.fromkeys(("sd-1.5", "bk-sdm-base", "bk-sdm-small", "bk-sdm-tiny"), (1, 50)),
}
ONE_DIGIT = ("ddpm-cifar10, N=1", *(f"ddpm-lsun, N={n}" for n in (1, 2, 3, 5)))  # as printed; the others have two
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
    branch, num_steps = PAPER[name]
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
    unit = 0.1 if row in ONE_DIGIT else 0.01
    assert float(mean) / 1e9 == pytest.approx(theirs, abs=unit)  # some are cut off rather than rounded


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
        settings={"model": name, "branch": skip, "extractor": "none", **conditions(found)}
        | {"timing": f"median of {ROUNDS} interleaved pairs of steps on {BATCH} samples" if shares else NOT_MEASURED},
        metrics=metrics,
    )
    if shares and thresholds.macs_rule_time(found):
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

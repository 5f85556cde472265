"""The MACs of every real architecture are held against the paper's, and a shallow step's time stands beside its MACs.

The time of a shallow step is measured on the embedded models, as a share of a full step's time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from bench.harness.columns import BEDROOM, CIFAR, COCO, of_the_paper
from bench.harness.laws import macs_rule_time
from bench.harness.measure import NOT_MEASURED, conditions
from bench.harness.requirements import Needs
from bench.harness.scales import scale_of
from bench.harness.workload import Workload
from deepcache.models.architectures import architecture
from deepcache.plan import uniform
from deepcache.results.layout import Column, Layout, Published
from deepcache.unets.calls import Call
from deepcache.unets.family import CutUNet
from deepcache.unets.registry import cut

NEEDS = Needs(("unpruned",))


def _published() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the columns that reproduce; Table 3's N = 5 does not, since it prints the value of N = 4."""
    ddpm = ("DDPM*", "DeepCache uniform")
    for model, (uncached, cached), intervals, where in (
        ("ldm-4-g", ("LDM-4*", "Uniform"), (1, 2, 3, 5, 10, 20), {"table": "Table 1"}),
        ("ddpm-cifar10", ddpm, (1, 2, 3, 5, 10), {"table": "Table 2", "dataset": CIFAR}),
        ("ddpm-lsun", ddpm, (1, 2, 3, 5), {"table": "Table 2", "dataset": BEDROOM}),
        ("sd-1.5", ("PLMS - 50 steps", ""), (1,), {"table": "Table 3", "dataset": COCO}),
        ("bk-sdm-base", ("BK-SDM - Base", ""), (1,), {"table": "Table 3", "dataset": COCO}),
        ("bk-sdm-small", ("BK-SDM - Small", ""), (1,), {"table": "Table 3", "dataset": COCO}),
        ("bk-sdm-tiny", ("BK-SDM - Tiny", ""), (1,), {"table": "Table 3", "dataset": COCO}),
    ):
        for n in intervals:
            yield {"model": model, "interval": n}, {"method": uncached if n == 1 else f"{cached} - N={n}", **where}


TABLE = Layout(
    "macs",
    title="MACs of full and shallow steps, and the share of a full step's time",
    look="Compare a measured mean with the printed one beneath it; the last columns show whether time goes as MACs do.",
    columns=(
        Column("macs", "mean over the plan (G)", 4, "macs_g", scale=1e9, same=()),
        Column("macs_full", "full step (G)", 4, scale=1e9),
        Column("macs_shallow", "shallow step (G)", 4, scale=1e9),
        Column("macs_share", "of the MACs (%)", 1, scale=0.01),
        Column("shallow_share", "of the time (%)", 1, scale=0.01),
    ),
    published=of_the_paper(
        "Table 1 (LDM-4-G), Table 2 (DDPM), Table 3 (Stable Diffusion v1.5), as printed",
        {"extractor": "as printed"},
        _published(),
    ),
)
# The branch and the number of steps of the paper.
PAPER = {
    "ldm-4-g": (0, 250),
    "ddpm-cifar10": (2, 100),
    "ddpm-lsun": (2, 100),
    **dict.fromkeys(("sd-1.5", "bk-sdm-base", "bk-sdm-small", "bk-sdm-tiny"), (1, 50)),
}
ONE_DIGIT = {("ddpm-cifar10", 1), *(("ddpm-lsun", n) for n in (1, 2, 3, 5))}  # the others are printed with two digits
# A shallow step takes its share of the MACs of a full step's time, and what does not shrink with the MACs: the
# outermost stages have few MACs for their many pixels, and calls have a price of their own.
TIME_BEYOND_MACS = 0.15
BATCH = 8
WARM_UP, ROUNDS = 3, 40


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "skip" in metafunc.fixturenames:
        models = scale_of(metafunc.config).unpruned
        cases = [(name, branch) for name in models for branch in range(architecture(name).num_branches)]
        metafunc.parametrize(("name", "skip"), cases)


@pytest.mark.parametrize("paper", TABLE.published, ids=lambda paper: "{model}, N={interval}".format(**paper.key))
def test_macs_of_the_paper(record: Callable[..., None], paper: Published) -> None:
    name, interval = str(paper.key["model"]), int(str(paper.key["interval"]))
    branch, num_steps = PAPER[name]
    known = architecture(name)
    cost = known.cost()
    mean = cost.mean(uniform(num_steps, interval, branch), known.convention)
    record(
        table=TABLE,
        key=paper.key,
        label=f"{name}, N={interval}",
        settings={"model": name, "branch": branch, "interval": interval, "num_steps": num_steps}
        | {"extractor": "none", "macs_convention": str(known.convention)},
        metrics={
            "macs": round(mean),
            "macs_full": cost.full(known.convention),
            "macs_shallow": cost.shallow(branch, known.convention),
            "macs_share": cost.shallow(branch, known.convention) / cost.full(known.convention),
        },
    )
    unit = 0.1 if (name, interval) in ONE_DIGIT else 0.01
    assert float(mean) / 1e9 == pytest.approx(paper.values["macs_g"], abs=unit)  # some are cut off rather than rounded


def test_share_of_a_shallow_step(
    benchmark: Any, record: Callable[..., None], workload: Callable[..., Workload], name: str, skip: int
) -> None:
    found = workload(name)
    unet, cost = found.pipe.unet, found.cost
    at_skip, call = cut(unet, skip), found.unet_call(BATCH)
    with torch.no_grad(), _counted(unet) as ran:
        _, feature = at_skip.full(*call[0], **call[1])
        num_full = len(ran)
        at_skip.shallow(feature, *call[0], **call[1])
    shares = _shares(at_skip, call, unet.device) if benchmark.enabled else []
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
        table=TABLE,
        key={"model": name, "branch": skip},
        label=f"{name}, branch {skip}",
        settings={"model": name, "branch": skip, "extractor": "none", **conditions(found)}
        | {"timing": f"median of {ROUNDS} interleaved pairs of steps on {BATCH} samples" if shares else NOT_MEASURED},
        metrics=metrics,
    )
    if shares and macs_rule_time(found):
        assert metrics["shallow_share"] <= metrics["macs_share"] + TIME_BEYOND_MACS
    assert metrics["modules_shallow"] < metrics["modules_full"]


@contextmanager
def _counted(unet: Any) -> Iterator[list[Any]]:
    """Yield the list of modules without children that run within the block, in order."""
    ran: list[Any] = []
    leaves = [module for module in unet.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(lambda module, args, output: ran.append(module)) for leaf in leaves]  # noqa: ARG005
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _shares(at_skip: CutUNet, call: Call, device: torch.device) -> list[float]:
    """Return for each round the time of a shallow step over that of a full step."""
    (args, kwargs), found = call, []
    for number in range(WARM_UP + ROUNDS):
        started = _now(device)
        _, feature = at_skip.full(*args, **kwargs)
        between = _now(device)
        at_skip.shallow(feature, *args, **kwargs)
        ended = _now(device)
        if number >= WARM_UP:
            found.append((ended - between) / (between - started))
    return found


def _now(device: torch.device) -> float:
    """Return the time in seconds after the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

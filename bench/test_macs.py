"""MACs profiling: every real architecture against the paper's columns, every layer as a picture; and what a shallow
step of the embedded models takes of a full one's time, beside its share of the MACs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import thresholds
import torch
from matplotlib.figure import Figure
from workload import Workload

from deepcache.example import example
from deepcache.forward import full_forward, shallow_forward
from deepcache.models.architectures import ARCHITECTURES, architecture
from deepcache.plan import uniform
from deepcache.results import published
from deepcache.results.experiments import BEDROOM, CIFAR
from deepcache.results.picture import picture
from deepcache.views import Cut

# (branch, steps, intervals, the published row of an interval, digits that it has): the columns that reproduce.
PAPER: dict[str, tuple[int, int, tuple[int, ...], Callable[[int], dict[str, Any]], int]] = {
    "ldm-4-g": (0, 250, (1, 2, 3, 5, 10, 20), lambda n: _method(n, "LDM-4*", "Uniform", table="Table 1"), 2),
    "ddpm-cifar10": (2, 100, (1, 2, 3, 5, 10), lambda n: _method(n, "DDPM*", table="Table 2", dataset=CIFAR), 1),
    "ddpm-lsun": (2, 100, (1, 2, 3, 5), lambda n: _method(n, "DDPM*", table="Table 2", dataset=BEDROOM), 1),
    "sd-1.5": (1, 50, (1,), lambda n: {"table": "Table 3", "method": "PLMS - 50 steps"}, 2),  # noqa: ARG005
}
CASES = [(name, n) for name, (_, _, intervals, _, _) in PAPER.items() for n in intervals]
EMBEDDED = [
    (name, b) for name in ("mini-ldm", "mini-ddpm", "mini-sd") for b in range(architecture(name).cost().num_branches)
]
BATCH = 8
WARM_UP, ROUNDS = 3, 15


def _method(interval: int, uncached: str, kind: str = "DeepCache uniform", **where: str) -> dict[str, Any]:
    return {"method": uncached if interval == 1 else f"{kind} - N={interval}", **where}


@pytest.mark.parametrize(("name", "interval"), CASES, ids=lambda value: str(value))
def test_macs_of_the_paper(record: Callable[..., None], name: str, interval: int) -> None:
    branch, num_steps, _, match, digits = PAPER[name]
    known = architecture(name)
    cost = known.cost()
    mean = cost.mean(uniform(num_steps, interval, branch), known.convention)
    record(
        experiment="macs",
        row=f"{name}, N={interval}",
        settings={"model": name, "branch": branch, "interval": interval, "num_steps": num_steps}
        | {"extractor": "none", "macs_convention": str(known.convention)},
        metrics={
            "macs": round(mean),
            "macs_full": cost.full(known.convention),
            "macs_shallow": cost.shallow(branch, known.convention),
            "macs_share": cost.shallow(branch, known.convention) / cost.full(known.convention),
        },
    )
    theirs = published.row(**match(interval))["macs_g"]
    assert float(mean) / 1e9 == pytest.approx(theirs, abs=0.51 * 10**-digits)


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
    assert sum(stage.total(known.convention) for stage in stages) == cost.full(known.convention)


@pytest.mark.parametrize(("name", "branch"), EMBEDDED, ids=lambda value: str(value))
def test_share_of_a_shallow_step(
    benchmark: Any, record: Callable[..., None], workload: Callable[..., Workload], name: str, branch: int
) -> None:
    found = workload(name)
    unet, cost = found.pipe.unet, found.cost
    cut = Cut.of(unet, branch)
    args, kwargs = example(unet, context_tokens=architecture(name).context_tokens or None)
    args = tuple(_filled(value) for value in args)
    shares = _shares(unet, cut, args, kwargs) if benchmark.enabled else []
    benchmark.pedantic(lambda: None)
    metrics = {
        "macs_full": cost.full(),
        "macs_shallow": cost.shallow(branch),
        "macs_share": cost.shallow(branch) / cost.full(),
    }
    if shares:
        metrics["shallow_share"] = statistics.median(shares)
    record(
        experiment="macs",
        row=f"{name}, branch {branch}",
        settings={"model": name, "branch": branch, "extractor": "none", "device": "cpu"}
        | {"timing": f"median of {ROUNDS} interleaved pairs of steps on {BATCH} samples"},
        metrics=metrics,
    )
    if shares:
        assert metrics["shallow_share"] <= thresholds.SHALLOW_STEP_TAKES_AT_MOST


@torch.no_grad()
def _shares(unet: Any, cut: Cut, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[float]:
    """Time of a shallow step over that of a full step, a pair a round."""
    found = []
    for number in range(WARM_UP + ROUNDS):
        started = time.perf_counter()
        _, feature = full_forward(unet, cut, *args, **kwargs)
        between = time.perf_counter()
        shallow_forward(unet, cut, feature, *args, **kwargs)
        ended = time.perf_counter()
        if number >= WARM_UP:
            found.append((ended - between) / (between - started))
    return found


def _filled(value: Any) -> Any:
    """A batch of random inputs in the place of one sample on the meta device."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value if not isinstance(value, torch.Tensor) else torch.tensor(500)
    return torch.randn(BATCH, *value.shape[1:], generator=torch.Generator().manual_seed(0))

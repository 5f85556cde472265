"""Draw the README's first picture: images of mini-sd at one cost, beside the curve of cost against fidelity.

python -m bench.first_picture docs/first_picture.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from bench.pareto.aims import FEWER, PREDICTED, REUSE, chosen
from bench.pareto.equal_cost import NEAREST, panels
from deepcache import models
from deepcache.costs.macs import EVERYTHING
from deepcache.metrics.fidelity import psnr_each
from deepcache.models.architectures import architecture
from deepcache.plan import IDLE, CachePlan, uniform
from deepcache.sampling.conditions import conditions_of
from deepcache.sampling.workload import Sampling, by_protocol

RESULTS = Path(__file__).parent / "results" / "pareto" / "records.jsonl"
MODEL, PANEL, CALLS, BRANCH = "mini-sd", ("mini-sd", "plms 50"), 51, 1
SEEDS = (3, 5)
AMPLIFIED = 8  # how much the differences to the uncached image are amplified
GREY, ORANGE, BLUE = "#4a5560", "#D55E00", "#0072B2"
# Title, U-Net calls' plan, steps: the next two cost about the same, and the last one less
WAYS: tuple[tuple[str, CachePlan | None, int], ...] = (
    ("uncached", None, 50),
    ("fewer steps", None, 20),
    ("reuse (DeepCache)", uniform(CALLS, 5, BRANCH, 0), 50),
    ("idle steps (this)", uniform(CALLS, 3, IDLE, 1, last_step_full=True), 50),
)


def images() -> torch.Tensor:
    """Sample the seeds in each way: (ways, seeds, 3, H, W) in 0..1."""
    pipe = models.load(MODEL)
    workload, sampling = by_protocol(MODEL, pipe, conditions_of(pipe))
    found = []
    for name, plan, num_steps in WAYS:
        each = Sampling(sampling.scheduler, num_steps, plan)
        with workload.under(each):
            found.append(workload.sample(SEEDS, description=name, **each.arguments))
    return torch.stack(found)


def shares() -> list[float]:
    """Return the share of the uncached MACs of each way, everything counted."""
    cost = architecture(MODEL).cost()
    full = cost.full(EVERYTHING)
    # PLMS calls the U-Net once more than it has steps
    macs = [(steps + 1) * full if plan is None else CALLS * cost.mean(plan, EVERYTHING) for _, plan, steps in WAYS]
    return [float(each / (CALLS * full)) for each in macs]


def draw(found: torch.Tensor) -> Figure:
    """Draw each seed's images above their differences to the uncached image, and the curves beside them."""
    figure = Figure(figsize=(11.5, 5.2), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=[1.15, 1])
    left, right = parts
    axes = left.subplots(2 * len(SEEDS), len(WAYS), squeeze=False)
    for column, ((name, _, _), share, each) in enumerate(zip(WAYS, shares(), found, strict=True)):
        axes[0][column].set_title(f"{name}\n{share:.0%} of the MACs", fontsize=9)
        for row, (image, uncached) in enumerate(zip(each, found[0], strict=True)):
            _show(axes[2 * row][column], image)
            _show(axes[2 * row + 1][column], 0.5 + AMPLIFIED * (image - uncached))
            near = f"{psnr_each(image[None], uncached[None])[0]:.0f} dB" if column else f"difference x {AMPLIFIED}:"
            axes[2 * row][column].set_xlabel(near, fontsize=9, labelpad=3)
    _curves(right.subplots())
    return figure


def _show(axis: Any, image: torch.Tensor) -> None:
    axis.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _curves(axis: Any) -> None:
    points = panels(RESULTS)[PANEL]
    predicted = [point for point in points if point.curve in PREDICTED]
    best = [chosen(points, PREDICTED, share) for share in sorted(point.share for point in predicted)]
    ahead = {point.name: point for point in best if point is not None}
    for name, colour, shown in (
        ("predicted, plan chosen on other seeds (this)", BLUE, [*ahead.values()]),
        ("fewer steps", GREY, [point for point in points if point.curve == FEWER]),
        ("reuse (DeepCache)", ORANGE, [point for point in points if point.curve == REUSE]),
    ):
        line = sorted((100 * point.share, point.metrics[NEAREST]) for point in shown)
        axis.plot(*zip(*line, strict=True), color=colour, marker="o", markersize=4, label=name)
    axis.set(xlabel="U-Net MACs, % of the uncached", ylabel="PSNR to the uncached images, median seed (dB)")
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.legend(frameon=False, fontsize=9)


def main(file: Path) -> None:
    draw(images()).savefig(file, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Figure 2: features of adjacent steps are alike in every up block; those of distant steps mostly in the outermost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from torch import Tensor

from bench.harness.laws import Judge
from bench.harness.measure import describe
from bench.harness.pictures import heatmaps
from bench.harness.requirements import Needs
from bench.harness.up_blocks import similarities
from bench.harness.workload import Workload
from deepcache.results.figures import picture
from deepcache.results.layout import Column, Layout

NEEDS = Needs(("prompted", "class_conditional", "unconditional"))
TABLE = Layout(
    "figure2",
    title="Figure 2: how alike the features of two steps are",
    look="Compare the last column down a model's up blocks: the higher, the longer a kept feature may serve.",
    columns=(
        Column("similarity_adjacent", "cosine similarity of adjacent steps, mean", 4),
        Column("similarity_lowest", "lowest", 4),
        Column("similar_share", "steps alike above 0.95, mean (%)", 1),
    ),
)
SEEDS = range(8)
# The paper's Figure 2 calls features alike above this cosine; those of adjacent steps must be alike, or nothing could
# be reused.
ALIKE = 0.95

pytestmark = pytest.mark.shows_images


@pytest.mark.parametrize("part", ["prompted", "class_conditional", "unconditional"])
def test_figure2(record: Callable[..., None], workload: Callable[..., Workload], part: str, judge: Judge) -> None:
    found = workload(part)
    matrices, shown = similarities(found, SEEDS)
    names = [f"up block {number}" for number in range(len(matrices))]
    low = min(float(matrix.min()) for matrix in matrices)
    uncached = found.uncached()
    settings = describe(found, uncached, uncached, SEEDS)
    for number, (name, matrix) in enumerate(zip(names, matrices, strict=True)):
        record(
            table=TABLE,
            key={"model": found.model, "up_block": number},
            label=f"{found.model}, {name}",
            settings=settings,
            metrics={
                "similarity_adjacent": _adjacent(matrix),
                "similarity_lowest": float(matrix.min()),
                "similar_share": _share(matrix),
            },
            pictures=_pictures(found.model, shown, matrices, names, low) if number == 0 else [],
        )
    if judge(found):
        assert all(_adjacent(matrix) >= ALIKE for matrix in matrices)
        assert all(_adjacent(matrix) > matrix.mean() for matrix in matrices)


def _adjacent(matrix: np.ndarray) -> float:
    """Return the mean similarity of neighbouring steps."""
    return float(np.diagonal(matrix, 1).mean())


def _share(matrix: np.ndarray) -> float:
    """Return the share of steps that are like a step, in percent, in the mean over all steps."""
    return 100 * float((matrix > ALIKE).mean())


def _pictures(
    model: str, shown: Tensor, matrices: list[np.ndarray], names: list[str], low: float
) -> list[dict[str, Any]]:
    heat = heatmaps(matrices, names, label="cosine similarity", low=low)
    curves = Figure(figsize=(5.2, 2.6), layout="constrained")
    axis = curves.subplots()
    for name, matrix, style in zip(names, matrices, ("-", "--", "-.", ":"), strict=False):
        axis.plot(100 * (matrix > ALIKE).mean(axis=1), style, label=name)
    axis.set(xlabel="step", ylabel=f"steps alike above {ALIKE} (%)")
    axis.legend(fontsize=8)
    lowest, shares = (
        ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
        for values in ([f"{m.min():.2f}" for m in matrices], [f"{_share(m):.0f} %" for m in matrices])
    )
    adjacent = min(map(_adjacent, matrices))
    return [
        picture(
            f"figure2-{model}",
            f"{model}: cosine similarity between the features of any two steps, of adjacent ones {adjacent:.3f} and "
            f"more in the mean; the lowest: {lowest}.",
            heat,
        ),
        picture(
            f"figure2-{model}-share",
            f"{model}: share of steps whose features are like a step's, above {ALIKE}; in the mean {shares}.",
            curves,
        ),
        picture(
            f"figure2-{model}-maps",
            f"{model}: feature maps of adjacent steps in the outermost up block, whose cosine similarity is "
            f"{_adjacent(matrices[-1]):.3f} in the mean.",
            _maps(shown),
        ),
    ]


def _maps(features: Tensor, channels: int = 6) -> Figure:
    """Draw some channels of the last up block's feature at four adjacent steps in the middle of sampling."""
    steps = range(features.shape[0] // 2, min(features.shape[0], features.shape[0] // 2 + 4))
    figure = Figure(figsize=(0.8 * channels + 0.8, 0.85 * len(steps)))
    axes = figure.subplots(len(steps), channels, squeeze=False)
    for row, step in zip(axes, steps, strict=True):
        for channel, axis in enumerate(row):
            axis.imshow(features[step, channel].numpy(), cmap="magma")
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(f"step {step}", rotation=0, ha="right", va="center", fontsize=8)
    return figure

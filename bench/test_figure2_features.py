"""Figure 2: the features of adjacent steps are alike in every up block, of distant ones in the outermost most often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from torch import Tensor

from bench.harness import thresholds
from bench.harness.laws import is_judged
from bench.harness.measure import describe
from bench.harness.pictures import heatmaps
from bench.harness.up_blocks import similarities
from bench.harness.workload import Workload
from deepcache.results.picture import picture

SEEDS = range(8)
ALIKE = thresholds.ADJACENT_FEATURES_ALIKE

pytestmark = pytest.mark.shows_images


@pytest.mark.parametrize("part", ["prompted", "class_conditional", "unconditional"])
def test_figure2(record: Callable[..., None], workload: Callable[..., Workload], part: str) -> None:
    found = workload(part)
    matrices, shown = similarities(found, SEEDS)
    names = [f"up block {number}" for number in range(len(matrices))]
    low = min(float(matrix.min()) for matrix in matrices)
    uncached = found.uncached()
    settings = describe(found, uncached, uncached, SEEDS)
    for name, matrix in zip(names, matrices, strict=True):
        record(
            experiment="figure2",
            row=f"{found.model}, {name}",
            settings=settings,
            metrics={
                "similarity_adjacent": _adjacent(matrix),
                "similarity_lowest": float(matrix.min()),
                "similar_share": _share(matrix),
            },
            pictures=_pictures(found.model, shown, matrices, names, low) if name == names[0] else [],
        )
    if is_judged(found):
        assert all(_adjacent(matrix) >= thresholds.ADJACENT_FEATURES_ALIKE for matrix in matrices)
        assert all(_adjacent(matrix) > matrix.mean() for matrix in matrices)


def _adjacent(matrix: np.ndarray) -> float:
    """Similarity of neighbouring steps, the mean."""
    return float(np.diagonal(matrix, 1).mean())


def _share(matrix: np.ndarray) -> float:
    """Percent of the steps that are alike, the mean over steps."""
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
    """Some channels of the last up block's feature at four adjacent steps in the middle."""
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

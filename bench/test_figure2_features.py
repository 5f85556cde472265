"""Figure 2: the features of the up blocks hardly change between steps, the deep ones least."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import thresholds
from matplotlib.figure import Figure
from measure import describe
from pictures import heatmaps
from torch import Tensor
from up_blocks import similarities
from workload import Workload

from deepcache.results.picture import picture

SEEDS = range(8)
ALIKE = 0.95  # the paper's, in its Figure 2c

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
        alike = (matrix > ALIKE).mean(axis=1)
        record(
            experiment="figure2",
            row=f"{found.model}, {name}",
            settings=settings,
            metrics={
                "similarity_adjacent": float(np.diagonal(matrix, 1).mean()),
                "similarity_lowest": float(matrix.min()),
                "similar_share": 100 * float(alike.mean()),
            },
            pictures=_pictures(found.model, shown, matrices, names, low) if name == names[0] else [],
        )
        assert np.diagonal(matrix) == pytest.approx(1, abs=1e-4)
        if found.protocol.num_steps >= thresholds.ENOUGH_STEPS:
            assert np.diagonal(matrix, 1).mean() > matrix.mean()


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
    return [
        picture(f"figure2-{model}", f"{model}: cosine similarity between the features of any two steps.", heat),
        picture(f"figure2-{model}-share", f"{model}: share of steps whose features are like a step's.", curves),
        picture(f"figure2-{model}-maps", f"{model}: feature maps of adjacent steps look the same.", _maps(shown)),
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

"""This module draws the pictures of several benches: grids of images with a line under each image, and heatmaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor


def grid(
    images: Tensor, *, columns: Sequence[str], rows: Sequence[str], under: Sequence[Sequence[str]] | None = None
) -> Figure:
    """Draw a grid of images.

    Args:
        images: (R, K, 3, H, W) in 0..1.
        columns: a title above each of the K columns.
        rows: a name left of each of the R rows.
        under: a line under each image, R x K.
    """
    count, width = images.shape[:2]
    cell = 0.62
    figure = Figure(figsize=(cell * width + 1.6, (cell + 0.16) * count + 0.4))
    axes = figure.subplots(count, width, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.3})
    for i in range(count):
        for j in range(width):
            axis = axes[i][j]
            axis.imshow(images[i, j].permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            if i == 0:
                axis.set_title(columns[j], fontsize=7)
            if under is not None:
                axis.set_xlabel(under[i][j], fontsize=6, labelpad=1)
        axes[i][0].set_ylabel(rows[i], rotation=0, ha="right", va="center", fontsize=7)
    return figure


def heatmaps(matrices: Sequence[np.ndarray], titles: Sequence[str], *, label: str, low: float) -> Figure:
    """Draw square matrices over pairs of steps, side by side on one scale.

    Args:
        matrices: (T, T) each.
        titles: a title above each matrix.
        label: what the values are.
        low: the low end of the scale, whose high end is 1.
    """
    figure = Figure(figsize=(2.7 * len(matrices) + 0.8, 2.9), layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    drawn: Any = None
    for axis, matrix, title in zip(axes, matrices, titles, strict=True):
        drawn = axis.imshow(matrix, vmin=low, vmax=1, cmap="viridis")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel("step", fontsize=8)
    figure.colorbar(drawn, ax=list(axes), label=label, shrink=0.9)
    return figure

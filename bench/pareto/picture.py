"""The curves of a model as small panels: a row a solver, a column a number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from bench.pareto.points import Panel

STYLES = {  # colours that readers with other eyes tell apart (Okabe and Ito), and a marker each
    "fewer steps": ("#000000", "x"),
    "order 0": ("#D55E00", "s"),
    "order 1": ("#56B4E9", "^"),
    "order 2": ("#0072B2", "v"),
    "optimal": ("#CC79A7", "D"),
    "tuned": ("#009E73", "o"),
    "fewer steps, order 1": ("#7F7F7F", "+"),
}
NAMES = {"order 0": "reuse (order 0)"}


def figure(rows: Sequence[Sequence[Panel]], metric: str, title: str) -> Figure:
    """`metric` over the share of the uncached MACs, its bootstrap interval as bars."""
    found = Figure(figsize=(11, 9), layout="constrained")
    axes = found.subplots(len(rows), max(map(len, rows)), squeeze=False, sharex=True, sharey=True)
    for line, panels in zip(axes, rows, strict=True):
        for axis, panel in zip(line, panels, strict=False):
            _draw(axis, panel, metric)
    found.supxlabel("MACs of a sample, share of the uncached")
    found.supylabel(title)
    handles, labels = axes[0][0].get_legend_handles_labels()
    found.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return found


def _draw(axis: Any, panel: Panel, metric: str) -> None:
    for curve, (colour, marker) in STYLES.items():
        points = panel.on(curve)
        if points:
            ys = [point.metrics[metric] for point in points]
            low = [y - point.metrics[f"{metric}_low"] for y, point in zip(ys, points, strict=True)]
            high = [point.metrics[f"{metric}_high"] - y for y, point in zip(ys, points, strict=True)]
            axis.errorbar(
                [point.share for point in points],
                ys,
                yerr=[[max(0, end) for end in ends] for ends in (low, high)],
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.3,
                elinewidth=0.6,
                capsize=2,
                label=NAMES.get(curve, curve),
            )
    uncached = panel.on("uncached")[0].metrics.get(metric)
    if uncached is not None:
        axis.axhline(uncached, color="0.5", linewidth=0.8, linestyle="--")
    axis.set_title(panel.name, fontsize=10)
    axis.grid(color="0.92")
    axis.set_axisbelow(True)

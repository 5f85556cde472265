"""Speedups as bars, with the bound that the plan's MACs set."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from bench.race.racers import OLDER, UNCACHED

COLOURS = {OLDER: "#D55E00"}  # as the Pareto plots have it
OURS = "#0072B2"


def figure(speedups: Mapping[str, float], bound: float) -> Figure:
    """`speedups` by entry, the uncached ones left out; each against the uncached U-Net of the same compilation."""
    shown = {name: value for name, value in speedups.items() if not name.startswith(UNCACHED)}
    found = Figure(figsize=(6.4, 0.42 * len(shown) + 1.0), layout="constrained")
    axis = found.subplots()
    bars = axis.barh(list(shown), list(shown.values()), color=[COLOURS.get(name, OURS) for name in shown])
    labels = axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    for label in labels:  # the line of the bound may run through it
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})
    axis.axvline(bound, color="0.3", linestyle="--", linewidth=1)
    above = {"xycoords": ("data", "axes fraction"), "xytext": (0, 4), "textcoords": "offset points"}
    axis.annotate(f"bound by MACs {bound:.2f}", (bound, 1), ha="center", va="bottom", fontsize=8, color="0.3", **above)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12 * max(bound, *shown.values()))
    axis.tick_params(labelsize=8)
    axis.set_xlabel("times faster than the uncached U-Net of the same compilation and layout", fontsize=8)
    return found

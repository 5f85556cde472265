"""Plots as inline SVG: text in the page's font and colour, curves in the page's palette, every point with its row."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from math import ceil
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from deepcache.results.layout import Layout
from deepcache.results.record import Record

NUM_COLOURS = 8  # of the palette in report.css; then the markers tell curves apart
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "p")  # nine, so that no pair of colour and marker repeats soon
_SIZE_IN = (6.0, 3.7)  # 72 units an inch: text of 11 units is legible at 350 pixels and at 650
_INK, _RULE = "#010203", "#040506"  # stand for what the style sheet knows
_PALETTE = tuple(f"#0a0b{i:02x}" for i in range(1, NUM_COLOURS + 1))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a dollar sign in a row's name is one
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",  # the page's
    "axes.facecolor": "none",
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _RULE,
    "legend.frameon": False,
}
Curves = dict[str, list[tuple[float, float, str]]]


def curves(layout: Layout, records: Sequence[Record]) -> Curves:
    """For each value of the plot's setting its points (x, y, row) from left to right, in the printed unit.

    Rows in which either metric was not measured are left out; rows without the setting are "others".
    """
    plot, found = layout.plot, Curves()
    if plot is None:
        return found
    scales = {column.key: column.scale for column in layout.columns}
    for record in records:
        x, y = record.metrics.get(plot.x), record.metrics.get(plot.y)
        if isinstance(x, (int, float)) and isinstance(y, (int, float)):
            name = str(record.settings.get(plot.by, "others"))
            found.setdefault(name, []).append((x / scales.get(plot.x, 1), y / scales.get(plot.y, 1), record.row))
    return {name: sorted(points) for name, points in found.items()}


def titles(layout: Layout) -> tuple[str, str]:
    """Of both axes; where a column scales its metric, the column's title, as that names the unit."""
    assert layout.plot is not None
    scaled = {column.key: column.title for column in layout.columns if column.scale != 1}
    return scaled.get(layout.plot.x, layout.plot.x_title), scaled.get(layout.plot.y, layout.plot.y_title)


def description(layout: Layout, found: Curves) -> str:
    """The plot in words, for those who cannot see it."""
    x_title, y_title = titles(layout)
    ranges = [
        f"{name}: {_points(len(points))} from ({points[0][0]:.4g}, {points[0][1]:.4g}) "
        f"to ({points[-1][0]:.4g}, {points[-1][1]:.4g})"
        for name, points in found.items()
    ]
    return f"Plot of {y_title} over {x_title}. " + "; ".join(ranges) + "."


def svg(layout: Layout, records: Sequence[Record]) -> str:
    """The layout's plot as an `<svg>` element; empty where it has none, or less than two points."""
    found = curves(layout, records)
    points = [point for curve in found.values() for point in curve]
    if len(points) < 2:
        return ""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": layout.experiment}):  # names differ from plot to plot
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(linewidth=0.8)
        axes.tick_params(length=0)
        handles = []
        for i, curve in enumerate(found.values()):
            colour, marker = _PALETTE[i % NUM_COLOURS], _MARKERS[i % len(_MARKERS)]
            axes.plot([x for x, _, _ in curve], [y for _, y, _ in curve], color=colour, linewidth=1.6)
            for x, y, row in curve:
                point = axes.plot([x], [y], color=colour, marker=marker, linestyle="none")[0]
                point.set_gid(f"point-{points.index((x, y, row))}")
            handles.append(Line2D([], [], color=colour, marker=marker, linewidth=1.6))
        x_title, y_title = titles(layout)
        axes.set_xlabel(x_title)
        axes.set_ylabel(textwrap.fill(y_title, 34))  # characters that the axis is long
        num_columns = max(1, min(3, 66 // (max(map(len, found)) + 7)))  # 66 characters fit, 7 are a line and a gap
        figure.set_figheight(_SIZE_IN[1] + 0.22 * ceil(len(found) / num_columns))
        legend = figure.legend(handles, [""] * len(found), loc="outside lower center", ncols=num_columns)
        for text, name in zip(legend.get_texts(), found, strict=True):
            text.set_text(name)  # given at once, a name that begins with an underscore would be left out
        buffer = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # the page's font draws what Matplotlib's own lacks
            figure.savefig(buffer, format="svg", metadata={"Date": None})
    names = [f"{row}: {x:.4g}, {y:.4g}" for x, y, row in points]
    return _inline(buffer.getvalue(), names, description(layout, found))


def _points(number: int) -> str:
    return "1 point" if number == 1 else f"{number} points"


def _inline(text: str, names: Sequence[str], label: str) -> str:
    """Matplotlib's document as an element of an HTML page.

    Without namespaces, its own background and style sheet; no `id` but those that are referred to.
    """
    root = ElementTree.fromstring(text)
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("metadata", "}style")) or child.get("id") == "patch_1":
                parent.remove(child)
    used = set(re.findall(r"#([\w-]+)", " ".join(value for e in root.iter() for value in e.attrib.values())))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: _coloured(value) for key, value in element.attrib.items()}
        name = element.get("id", "")
        if name.startswith("point-"):
            title = ElementTree.Element("title")
            title.text = names[int(name.removeprefix("point-"))]
            element.insert(0, title)
        if name not in used:
            element.attrib.pop("id", None)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": label,
        "stroke-linecap": "butt",
        "stroke-linejoin": "round",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _coloured(text: str) -> str:
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)  # the page's family
    text = text.replace(_INK, "currentColor").replace(_RULE, "var(--rule)")
    for i, colour in enumerate(_PALETTE):
        text = text.replace(colour, f"var(--curve-{i})")
    return text

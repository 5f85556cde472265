"""Figures: pictures that a record carries as data URIs, and plots of records as inline SVG for a page."""

from __future__ import annotations

import base64
import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from deepcache.errors import DeepCacheError
from deepcache.results.layout import Layout
from deepcache.results.record import Record

_PREFIX = "data:image/png;base64,"
NUM_COLOURS = 8  # in the palette of report.css; the markers tell further curves apart
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "p")  # nine, so that no pair of colour and marker repeats soon
_SIZE_IN = (6.0, 3.7)  # 72 units an inch: text of 11 units is legible at 350 pixels and at 650
_STYLE = Path(__file__).with_name("templates") / "plot.mplstyle"
_INK, _RULE = "#010203", "#040506"  # in plot.mplstyle these stand for colours of report.css
_PALETTE = tuple(f"#0a0b{i:02x}" for i in range(1, NUM_COLOURS + 1))
Curves = dict[str, list[tuple[float, float, str]]]


def picture(name: str, alt: str, image: Any) -> dict[str, str]:
    """Make a picture for `record(..., pictures=[...])`.

    Args:
        name: the name of the file that the picture becomes, without ending, e.g. "figure7".
        alt: what the picture shows, in words, for those who cannot see it.
        image: a PIL image or a matplotlib figure.
    """
    buffer = io.BytesIO()
    if hasattr(image, "savefig"):
        image.savefig(buffer, format="png", dpi=144, bbox_inches="tight")
    else:
        image.save(buffer, format="PNG", optimize=True)
    return {"name": name, "alt": alt, "data": _PREFIX + base64.b64encode(buffer.getvalue()).decode()}


def write(found: dict[str, str], folder: Path) -> Path:
    """Write a picture as `folder/NAME.png`, or say that it is no PNG or that the file cannot be written."""
    path = folder / f"{Path(found['name']).name}.png"
    try:
        path.write_bytes(base64.b64decode(found["data"].removeprefix(_PREFIX), validate=True))
    except (ValueError, OSError) as error:
        raise DeepCacheError(f"cannot write the picture {path}: {error}; choose another folder") from error
    return path


def curves(layout: Layout, records: Sequence[Record]) -> Curves:
    """Return the points (x, y, label) of every curve of the layout's plot, from left to right, in the printed unit.

    Records in which either metric was not measured are left out; records that do not say their curve are "others".
    """
    plot, found = layout.plot, Curves()
    if plot is None:
        return found
    scales = {column.metric: column.scale for column in layout.columns}
    for record in records:
        x, y = record.metrics.get(plot.x), record.metrics.get(plot.y)
        if isinstance(x, (int, float)) and isinstance(y, (int, float)):
            name = str({**record.settings, **record.key}.get(plot.by, "others"))
            found.setdefault(name, []).append((x / scales.get(plot.x, 1), y / scales.get(plot.y, 1), record.label))
    return {name: sorted(points) for name, points in found.items()}


def titles(layout: Layout) -> tuple[str, str]:
    """Return the titles of both axes: the column's title where a column scales the metric, since it names the unit."""
    assert layout.plot is not None
    scaled = {column.metric: column.title for column in layout.columns if column.scale != 1}
    return scaled.get(layout.plot.x, layout.plot.x_title), scaled.get(layout.plot.y, layout.plot.y_title)


def description(layout: Layout, found: Curves) -> str:
    """Describe the plot in words, for those who cannot see it."""
    x_title, y_title = titles(layout)
    ranges = []
    for name, points in found.items():
        (x, y, _), (last_x, last_y, _) = points[0], points[-1]
        count = f"{len(points)} point{'s' * (len(points) != 1)}"
        ranges.append(f"{name}: {count} from ({x:.4g}, {y:.4g}) to ({last_x:.4g}, {last_y:.4g})")
    return f"Plot of {y_title} over {x_title}. {'; '.join(ranges)}."


def svg(layout: Layout, records: Sequence[Record]) -> str:
    """Return the layout's plot as an `<svg>` element; an empty text without a plot or with fewer than two points."""
    found = curves(layout, records)
    points = [point for curve in found.values() for point in curve]
    if len(points) < 2:
        return ""
    import matplotlib  # slow to import, and tables need none of it
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    with matplotlib.rc_context({"svg.hashsalt": layout.name}, _STYLE):  # ids differ from plot to plot
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(linewidth=0.8)
        axes.tick_params(length=0)
        handles = []
        for i, curve in enumerate(found.values()):
            colour, marker = _PALETTE[i % NUM_COLOURS], _MARKERS[i % len(_MARKERS)]
            axes.plot([x for x, _, _ in curve], [y for _, y, _ in curve], color=colour, linewidth=1.6)
            for x, y, label in curve:
                gid = f"point-{points.index((x, y, label))}"
                axes.plot([x], [y], color=colour, marker=marker, linestyle="none", gid=gid)
            handles.append(Line2D([], [], color=colour, marker=marker, linewidth=1.6))
        x_title, y_title = titles(layout)
        axes.set_xlabel(x_title)
        axes.set_ylabel(textwrap.fill(y_title, 34))  # as many characters fit beside the axis
        num_columns = max(1, min(3, 66 // (max(map(len, found)) + 7)))  # 66 characters fit, 7 are a line and a gap
        figure.set_figheight(_SIZE_IN[1] + 0.22 * ceil(len(found) / num_columns))
        legend = figure.legend(handles, [""] * len(found), loc="outside lower center", ncols=num_columns)
        for text, name in zip(legend.get_texts(), found, strict=True):
            text.set_text(name)  # given at once, a name that begins with an underscore would be left out
        buffer = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # the page's font draws what Matplotlib's own lacks
            figure.savefig(buffer, format="svg", metadata={"Date": None})
    names = [f"{label}: {x:.4g}, {y:.4g}" for x, y, label in points]
    return _inline(buffer.getvalue(), names, description(layout, found))


def _inline(text: str, names: Sequence[str], label: str) -> str:
    """Turn Matplotlib's document into an element of a page, without namespaces, background, styles and unused ids."""
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
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    root.attrib |= {"stroke-linecap": "butt", "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")


def _coloured(text: str) -> str:
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)  # the page's family
    text = text.replace(_INK, "currentColor").replace(_RULE, "var(--rule)")
    for i, colour in enumerate(_PALETTE):
        text = text.replace(colour, f"var(--curve-{i})")
    return text

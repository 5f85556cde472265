"""Records to tables in Markdown, CSV and LaTeX: every measured row, and the published row beneath it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from deepcache.errors import DeepCacheError
from deepcache.files import write_text
from deepcache.results import figures
from deepcache.results.layout import Column, Layout, Scalar
from deepcache.results.record import Record
from deepcache.results.text import csv_cell, markdown, of_each, plain

DASH = "-"  # a cell that was not measured
DIFFERENCE = "difference"
_NAMES = ["method", "source"]  # the columns of texts; all other columns hold numbers
_NOTED = (
    "model", "weights", "extractor", "clip", "perceptual", "scheduler", "uncached_steps", "branch", "guidance_scale",
    "first_seed", "num_samples", "prompts", "macs_convention", "timing", "device", "num_threads",
)  # fmt: skip
_NUM_FEATURES = {"mini-features": 128, "Inception": 2048}  # FID takes the covariance of so many features
_SETTINGS = ("model", "scheduler", "num_steps", "branch", "interval", "order")
_METRICS = (
    "macs", "speedup", "fid", "clip_score", "psnr_db", "psnr_median_db", "tipped", "feature_bytes", "peak_bytes",
)  # fmt: skip


def by_table(records: Sequence[Record]) -> Iterator[tuple[Layout, list[Record]]]:
    """Yield every table with its records, as they are displayed, in the order of a report."""
    layouts: dict[str, Layout] = {}
    for record in records:
        layouts.setdefault(record.table.name, record.table)
    for layout in sorted(layouts.values(), key=lambda each: math.inf if each.number is None else each.number):
        shown = layout.displayed()
        yield shown, [record.displayed(shown) for record in records if record.table.name == layout.name]


def build(layout: Layout, records: Sequence[Record]) -> pd.DataFrame:
    """Make a table of up to three lines a record: measured, published, and their difference where it means something.

    The columns are `method`, `source`, and the layout's metrics in the printed unit, with NaN where there is no number.
    """
    lines = []
    for record in records:
        measured = {c.metric: _scaled(record.metrics.get(c.metric), c.scale) for c in layout.columns}
        label = record.label if record.outcome == "passed" else f"{record.label} ({record.outcome})"
        source = f"{record.settings.get('model')} ({_measured_by(record.settings)})"
        lines.append({"method": label, "source": source, **measured})
        if (paper := layout.beside(record.key)) is None:
            continue
        theirs = {c.metric: paper.values.get(c.published, math.nan) for c in layout.columns}
        differences = {
            c.metric: measured[c.metric] - theirs[c.metric]
            for c in layout.columns
            if c.same is not None and all(record.settings.get(name) == paper.settings.get(name) for name in c.same)
        }
        lines.append({"method": label, "source": f"paper ({_measured_by(paper.settings)})", **theirs})
        lines.append({"method": label, "source": DIFFERENCE, **differences})
    names = [*_NAMES, *(c.metric for c in layout.columns)]
    return pd.DataFrame(lines, columns=names).astype({c.metric: float for c in layout.columns})


def to_markdown(layout: Layout, table: pd.DataFrame, notes: Sequence[str]) -> str:
    """Return title, table and notes; a cell that was not measured is a dash."""
    shown = printed(layout, table)
    shown[_NAMES] = shown[_NAMES].map(markdown)
    shown.columns = shown.columns.map(markdown)
    remarks = [f"- {markdown(note)}" for note in notes]
    return "\n".join([f"### {markdown(layout.title)}", "", _typeset(shown, "pipe"), "", *remarks, ""])


def to_csv(table: pd.DataFrame) -> str:
    """Return the numbers in full, and no text that a spreadsheet would run as a formula."""
    return str(table.map(csv_cell).to_csv(index=False, float_format="%.6g"))


def to_latex(layout: Layout, table: pd.DataFrame, notes: Sequence[str]) -> str:
    """Return a booktabs tabular with the title and the notes as comments."""
    # LaTeX takes "[" and "*" at the beginning of a row for arguments of the command that ends the row before
    body = re.sub(r"^(\s*)(?=[\[*])", r"\1{}", _typeset(printed(layout, table), "latex_booktabs"), flags=re.MULTILINE)
    return "\n".join([f"% {layout.title}", *(f"% {note}" for note in notes), body, ""])


def _typeset(shown: pd.DataFrame, form: str) -> str:
    aligned = ["left" if name in _NAMES else "right" for name in shown.columns]
    return str(tabulate(shown, "keys", form, showindex=False, disable_numparse=True, colalign=aligned))


def notes(layout: Layout, records: Sequence[Record]) -> list[str]:
    """Return how to read a table: what was run and how, and where the published numbers come from."""
    lines = []
    for name in _NOTED:
        values = {record.settings[name] for record in records if name in record.settings}
        numbers = sorted(value for value in values if isinstance(value, (int, float)))
        words = sorted(str(value) for value in values if not isinstance(value, (int, float)))
        if values:
            lines.append(f"{name.replace('_', ' ')}: {'; '.join(map(str, [*numbers, *words]))}")
    lines += dict.fromkeys(filter(None, map(_bias, records)))
    if not layout.published:
        return [*lines, "a dash was not measured"]
    beside = {record.label: paper for record in records if (paper := layout.beside(record.key)) is not None}
    lines += dict.fromkeys(f"paper: {paper.label}" for paper in beside.values())
    remarks = {paper.note: label for label, paper in beside.items() if paper.note}
    lines += [f"paper, {label}: {remark}" for remark, label in remarks.items()]
    lines.append("a difference is shown only where the quantity is the same; a dash was not measured, here or there")
    return lines


def render(records: Sequence[Record], out: Path) -> list[Path]:
    """Write `NAME.md`, `.csv` and `.tex` of every table, `all.md` and `.csv` of all records, and the pictures."""
    tables = list(by_table(records))
    if not any(layout.columns for layout, _ in tables):
        found = ", ".join(layout.name for layout, _ in tables) or "none"
        raise DeepCacheError(
            f"expected records with the layout of their table, found records of {found} without one; "
            "pass what pytest wrote"
        )
    everything = overview(records)
    texts = {}
    for layout, mine in tables:
        if layout.columns:
            table, remarks = build(layout, mine), notes(layout, mine)
            texts[f"{layout.name}.md"] = to_markdown(layout, table, remarks)
            texts[f"{layout.name}.csv"] = to_csv(table)
            texts[f"{layout.name}.tex"] = to_latex(layout, table, remarks)
    texts |= {"all.csv": to_csv(everything), "all.md": overview_markdown(everything)}
    pictures = [picture for _, mine in tables for record in mine for picture in record.pictures]
    written = [write_text(out / name, text) for name, text in texts.items()]
    return written + [figures.write(picture, out) for picture in pictures]


def overview(records: Sequence[Record]) -> pd.DataFrame:
    """Make one table of all records, whatever their tables: a line a record, NaN where a record has no value."""
    lines = []
    for record in records:
        line: dict[str, Scalar] = {"experiment": record.table.name, "row": record.label, "outcome": record.outcome}
        line |= {name: record.settings.get(name) for name in _SETTINGS}
        lines.append(of_each(line | {name: record.metrics.get(name) for name in _METRICS}, plain))
    return pd.DataFrame(lines)


def overview_markdown(table: pd.DataFrame) -> str:
    """Return the table of all records with a dash for a missing value and whole numbers without a point."""

    def cell(value: object) -> str:
        if value is None or pd.isna(value):
            return DASH
        if isinstance(value, float):
            return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
        return markdown(str(value))

    return f"### All experiments\n\n{table.map(cell).to_markdown(index=False, disable_numparse=True)}\n"


def printed(layout: Layout, table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as texts: numbers of fixed digits, a sign on differences, the method once a row."""
    shown = pd.DataFrame({"method": table["method"].mask(table["method"].eq(table["method"].shift()), "")})
    shown["source"] = table["source"]
    signs = (table["source"] == DIFFERENCE).map({True: "+", False: ""})
    for c in layout.columns:
        shown[c.title] = [_number(value, c, sign) for value, sign in zip(table[c.metric], signs, strict=True)]
    return shown


def _bias(record: Record) -> str:
    """Return a warning where a FID is of too few samples; an empty text elsewhere."""
    extractor, count = str(record.settings.get("extractor")), record.settings.get("num_samples")
    features = _NUM_FEATURES.get(extractor, 0)
    if "fid" not in record.metrics or not isinstance(count, int) or count > features:
        return ""
    return (
        f"FID of {count} samples is mostly bias: on the {features} features of {extractor} their covariance lacks "
        "rank; go by FID drift and PSNR, which compare the same seeds"
    )


def _measured_by(settings: Mapping[str, Scalar]) -> str:
    return ", ".join(str(settings[name]) for name in ("extractor", "clip") if name in settings)


def _scaled(value: object, scale: float) -> float:
    return value / scale if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _number(value: float, column: Column, sign: str) -> str:
    """Print a number, or a dash for NaN; two digits are enough for large numbers in columns of small ones."""
    if pd.isna(value):
        return DASH
    digits = min(column.digits, 2) if abs(value) >= 1 else column.digits
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no "-0.00"

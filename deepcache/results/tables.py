"""Records to tables: Markdown, CSV and LaTeX, the measured beside the published."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from deepcache.errors import DeepCacheError
from deepcache.files import write_text
from deepcache.results import overview, picture, published
from deepcache.results.layout import Column, Layout
from deepcache.results.layouts import LAYOUTS
from deepcache.results.record import Record, Scalar
from deepcache.results.text import csv_cell, markdown

DASH = "-"  # a cell that was not measured
DIFFERENCE = "difference"
_NAMES = ["method", "source"]  # the columns of texts; all others are numbers
_NOTED = (
    "model", "weights", "extractor", "clip", "perceptual", "scheduler", "uncached_steps", "branch", "guidance_scale",
    "first_seed", "num_samples", "prompts", "macs_convention", "timing", "device", "num_threads",
)  # fmt: skip


_NUM_FEATURES = {"mini-features": 128, "Inception": 2048}  # whose covariance FID takes


def build(layout: Layout, records: Sequence[Record]) -> pd.DataFrame:
    """Three lines a row: measured, published, and their difference where it means something.

    Columns `method`, `source`, then the layout's; numbers in the printed unit, NaN where there is none.
    """
    lines = []
    for record in records:
        measured = {c.key: _scaled(record.metrics.get(c.key), c.scale) for c in layout.columns}
        label = record.row if record.outcome == "passed" else f"{record.row} ({record.outcome})"
        source = f"{record.settings.get('model')} ({_measured_by(record.settings)})"
        lines.append({"method": label, "source": source, **measured})
        if record.row not in layout.rows:
            continue
        paper, beside = _paper(layout, record), layout.beside(record.settings)
        theirs = {c.key: paper[c.published] for c in layout.columns if c.published in paper}
        differences = {
            c.key: ours - theirs[c.key]
            for c in layout.columns
            if (ours := measured[c.key]) is not None and c.key in theirs and _same(c, layout, record)
        }
        lines.append({"method": label, "source": f"paper ({_measured_by(beside.published_settings)})", **theirs})
        lines.append({"method": label, "source": DIFFERENCE, **differences})
    keys = [*_NAMES, *(c.key for c in layout.columns)]
    return pd.DataFrame(lines, columns=keys).astype({c.key: float for c in layout.columns})


def to_markdown(layout: Layout, table: pd.DataFrame, notes: Sequence[str]) -> str:
    """Title, table and notes; a cell not measured is a dash."""
    shown = printed(layout, table)
    shown[_NAMES] = shown[_NAMES].map(markdown)
    body = shown.to_markdown(index=False, disable_numparse=True, colalign=_alignment(layout))
    return "\n".join([f"### {layout.title}", "", body, "", *(f"- {markdown(note)}" for note in notes), ""])


def to_csv(table: pd.DataFrame) -> str:
    """Numbers in full, and no text that a spreadsheet would run as a formula."""
    text: str = table.map(csv_cell).to_csv(index=False, float_format="%.6g")
    return text


def to_latex(layout: Layout, table: pd.DataFrame, notes: Sequence[str]) -> str:
    """A booktabs tabular with the title and the notes as comments."""
    from tabulate import tabulate

    body = tabulate(
        printed(layout, table).values.tolist(),
        headers=list(printed(layout, table).columns),
        tablefmt="latex_booktabs",
        disable_numparse=True,
        colalign=_alignment(layout),
    )
    # LaTeX takes "[" and "*" at the beginning of a row for arguments of the command that ends the row before
    body = re.sub(r"^(\s*)(?=[\[*])", r"\1{}", body, flags=re.MULTILINE)
    return "\n".join([f"% {layout.title}", *(f"% {note}" for note in notes), body, ""])


def notes(layout: Layout, records: Sequence[Record]) -> list[str]:
    """How to read a table: what was run, with what, and whose numbers stand beside."""
    lines = []
    for key in _NOTED:
        values = sorted({record.settings[key] for record in records if key in record.settings}, key=_by_size)
        if values:
            lines.append(f"{key.replace('_', ' ')}: {'; '.join(map(str, values))}")
    lines += dict.fromkeys(filter(None, map(_biased, records)))
    if not layout.published_table:
        return [*lines, "a dash was not measured"]
    lines += dict.fromkeys(f"paper: {layout.beside(record.settings).published_label}" for record in records)
    remarks = {paper["note"]: record.row for record in records if "note" in (paper := _paper(layout, record))}
    lines += [f"paper, {row}: {remark}" for remark, row in remarks.items()]
    lines.append("a difference is shown only where the quantity is the same; a dash was not measured, here or there")
    return lines


def render(records: Sequence[Record], out: Path) -> list[Path]:
    """Write every table that has records as `out/NAME.md`, `.csv` and `.tex`, and the pictures; return the paths.

    `all.csv` and `all.md` have every record of every experiment.

    Raises:
        DeepCacheError: no record belongs to a table, or `out` cannot be written.
    """
    written = []
    records = [record.displayed() for record in records]
    for layout in LAYOUTS:
        mine = [record for record in records if record.experiment == layout.experiment]
        if mine:
            table, remarks = build(layout, mine), notes(layout, mine)
            for suffix, text in (
                ("md", to_markdown(layout, table, remarks)),
                ("csv", to_csv(table)),
                ("tex", to_latex(layout, table, remarks)),
            ):
                written.append(write(out / f"{layout.experiment}.{suffix}", text))
    if not written:
        known = ", ".join(layout.experiment for layout in LAYOUTS)
        found = ", ".join(sorted({record.experiment for record in records})) or "none"
        raise DeepCacheError(f"expected records of the experiments {known}; found {found}")
    everything = overview.overview(records)
    written.append(write(out / "all.csv", to_csv(everything)))
    written.append(write(out / "all.md", overview.to_markdown(everything)))
    return [*written, *(picture.write(found, out) for record in records for found in record.pictures)]


def _paper(layout: Layout, record: Record) -> dict[str, Any]:
    """The published row beside a record; empty where there is none."""
    if record.row not in layout.rows:
        return {}
    beside = layout.beside(record.settings)
    return published.row(**{"table": beside.published_table, **beside.rows[record.row]})


def _biased(record: Record) -> str:
    """What to say of a FID that is of too few samples; empty where it is of enough, or there is none."""
    extractor, count = record.settings.get("extractor"), record.settings.get("num_samples")
    features = _NUM_FEATURES.get(str(extractor), 0)
    if "fid" not in record.metrics or not isinstance(count, int) or count > features:
        return ""
    return (
        f"FID of {count} samples is mostly bias: on the {features} features of {extractor} their covariance lacks "
        "rank; go by FID drift and PSNR, which compare the same seeds"
    )


def _by_size(value: Scalar) -> tuple[float, str]:
    """Numbers by their size, before words."""
    return (value, "") if isinstance(value, (int, float)) else (math.inf, str(value))


def _measured_by(settings: Mapping[str, object]) -> str:
    return ", ".join(str(settings[name]) for name in ("extractor", "clip") if name in settings)


def _same(column: Column, layout: Layout, record: Record) -> bool:
    beside = layout.beside(record.settings)
    known = beside.published_settings | beside.models.get(record.row, {})
    return column.same is not None and all(record.settings.get(name) == known.get(name) for name in column.same)


def write(path: Path, text: str) -> Path:
    write_text(path, text)
    return path


def _scaled(value: object, scale: float) -> float | None:
    return value / scale if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def printed(layout: Layout, table: pd.DataFrame) -> pd.DataFrame:
    """Strings: fixed digits, a sign on differences, the method once a row."""
    shown = pd.DataFrame({"method": table["method"].mask(table["method"].eq(table["method"].shift()), "")})
    shown["source"] = table["source"]
    signs = (table["source"] == DIFFERENCE).map({True: "+", False: ""})
    for c in layout.columns:
        shown[c.title] = [_number(value, c, sign) for value, sign in zip(table[c.key], signs, strict=True)]
    return shown


def _number(value: float, column: Column, sign: str) -> str:
    """A dash where there is none; two digits are enough for large numbers in columns of small ones."""
    if pd.isna(value):
        return DASH
    digits = min(column.digits, 2) if abs(value) >= 1 else column.digits
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no "-0.00"


def _alignment(layout: Layout) -> tuple[str, ...]:
    return ("left", "left", *("right" for _ in layout.columns))

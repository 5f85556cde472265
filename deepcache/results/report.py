"""Records to one HTML page that needs nothing else: tables, plots, pictures, environment and commands."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deepcache.errors import DeepCacheError
from deepcache.results import plots, tables
from deepcache.results.layout import Layout
from deepcache.results.layouts import LAYOUTS
from deepcache.results.record import Record, Scalar

_PNG = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")
_LONG_TABLE = 60  # rows; with more a table scrolls within the page
_MACHINE = ("device", "num_threads")  # settings that are told with the environment


@dataclass(frozen=True)
class Line:
    """One line of a row: `kind` is measured, published or difference; `cells` are printed numbers."""

    kind: str
    source: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A record in its table; `values` are what its columns are sorted by."""

    name: str
    outcome: str
    lines: tuple[Line, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Picture:
    """`data` is a PNG's data URI."""

    name: str
    alt: str
    data: str
    row: str


@dataclass(frozen=True)
class Section:
    """An experiment. One that no layout knows has no table but `details`: everything recorded, a line a record."""

    anchor: str
    title: str
    headers: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[tuple[str, str], ...]
    plot: str
    plot_title: str
    pictures: tuple[Picture, ...]
    detail_headers: tuple[str, ...]
    details: tuple[tuple[Scalar, ...], ...]
    command: str
    num_failed: int


def write(records: Sequence[Record], path: Path, made_by: str = "") -> Path:
    """The page of `page` at `path`.

    Raises:
        DeepCacheError: a picture that is no PNG, or `path` cannot be written.
    """
    return tables.write(path, page(records, made_by))


def page(records: Sequence[Record], made_by: str = "") -> str:
    """All records as HTML. `made_by` is the command that is shown as the page's own.

    Raises:
        DeepCacheError: no records, or a picture in them is no PNG.
    """
    if not records:
        raise DeepCacheError("expected records for a report, got none; `pytest bench/` makes some")
    records = [record.displayed() for record in records]
    known = {layout.experiment for layout in LAYOUTS}
    others = dict.fromkeys(record.experiment for record in records if record.experiment not in known)
    sections = [
        *(_section(layout, mine) for layout in LAYOUTS if (mine := _of(layout.experiment, records))),
        *(_section(Layout(name, name, ()), _of(name, records)) for name in others),
    ]
    found = {record.experiment for record in records}
    environment = Environment(
        loader=PackageLoader("deepcache.results"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text: str = environment.get_template("report.html").render(
        sections=sections,
        missing=[layout.title for layout in LAYOUTS if layout.experiment not in found],
        num_rows=len(records),
        num_failed=sum(section.num_failed for section in sections),
        facts=_facts(records),
        environment=_environment(records),
        made_by=made_by,
        num_colours=plots.NUM_COLOURS,
        long_table=_LONG_TABLE,
        dash=tables.DASH,
    )
    return text


def _of(experiment: str, records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.experiment == experiment]


def _section(layout: Layout, records: Sequence[Record]) -> Section:
    has_table = bool(layout.columns)
    plot = plots.svg(layout, records)
    headers, details = _details(records)
    return Section(
        anchor=re.sub(r"[^a-z0-9]+", "-", layout.experiment.lower()),
        title=layout.title,
        headers=tuple(column.title for column in layout.columns),
        rows=tuple(_row(layout, record) for record in records) if has_table else (),
        notes=tuple(_halves(note) for note in tables.notes(layout, records)) if has_table else (),
        plot=Markup(plot),  # matplotlib's XML, serialised by ElementTree
        plot_title=" over ".join(reversed(plots.titles(layout))) if plot else "",
        pictures=tuple(_picture(record, entry) for record in records for entry in record.pictures),
        detail_headers=headers,
        details=details,
        command=_again(layout) if has_table else "",
        num_failed=sum(record.outcome != "passed" for record in records),
    )


def _row(layout: Layout, record: Record) -> Row:
    table = tables.build(layout, [record])
    printed = tables.printed(layout, table)
    kinds = ["measured", *("published" for _ in range(len(table) - 1))]
    lines = []
    for i, source in enumerate(table["source"]):
        kind = tables.DIFFERENCE if source == tables.DIFFERENCE else kinds[i]
        lines.append(Line(kind, source, tuple(printed.iloc[i, 2:])))
    measured = (table[column.key].iloc[0] for column in layout.columns)
    values = tuple(None if pd.isna(value) else float(value) for value in measured)
    return Row(record.row, record.outcome, tuple(lines), values)


def _picture(record: Record, entry: dict[str, str]) -> Picture:
    if not _PNG.fullmatch(entry["data"]):
        raise DeepCacheError(
            f"expected a PNG as a data URI in picture {entry['name']!r} of row {record.row!r}, got "
            f"{entry['data'][:40]!r}; make it with deepcache.results.picture.picture"
        )
    return Picture(entry["name"], entry["alt"], entry["data"], record.row)


def _halves(note: str) -> tuple[str, str]:
    name, colon, value = note.partition(": ")
    return (name, value) if colon else ("", note)


def _details(records: Sequence[Record]) -> tuple[tuple[str, ...], tuple[tuple[Scalar, ...], ...]]:
    """All that was recorded: settings that differ between rows, every metric, values a seed as their range."""
    settings = [key for key in _keys(record.settings for record in records) if len(_distinct(key, records)) > 1]
    metrics, seeds = _keys(r.metrics for r in records), _keys(r.per_seed for r in records)
    ranges = [f"{key} of the seeds: lowest, median, highest" for key in seeds]
    lines = []
    for record in records:
        values = [record.settings.get(key) for key in settings] + [record.metrics.get(key) for key in metrics]
        lines.append((record.row, record.outcome, *values, *(_range(record.per_seed.get(key)) for key in seeds)))
    return ("row", "outcome", *settings, *metrics, *ranges), tuple(lines)


def _keys(mappings: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _distinct(key: str, records: Sequence[Record]) -> list[Scalar]:
    return list(dict.fromkeys(record.settings.get(key) for record in records))


def _range(values: Sequence[float] | None) -> str | None:
    if not values:
        return None
    return f"{min(values):.4g}, {statistics.median(values):.4g}, {max(values):.4g} ({len(values)})"


def _again(layout: Layout) -> str:
    """How to run the experiment again: its bench is called after it, some with a word before."""
    return f"pytest bench/test_*{layout.experiment}[_.]* --benchmark-json results.json --report report.html"


def _facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """What was run, in one look."""
    keys = {"model": "models", "extractor": "measured with", "scheduler": "schedulers", "weights": "weights"}
    return [(name, _joined(r.settings.get(key) for r in records)) for key, name in keys.items()]


def _environment(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Of all records; several values where they differ."""
    found = [(key, _joined(r.environment.get(key) for r in records)) for key in _keys(r.environment for r in records)]
    machine = [(key.replace("_", " "), _joined(r.settings.get(key) for r in records)) for key in _MACHINE]
    return [*found, *machine]


def _joined(values: Iterable[Scalar]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, "none"))) or tables.DASH

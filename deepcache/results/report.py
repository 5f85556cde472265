"""Records to one HTML page of tables, plots, pictures, environment and commands; the page needs no other file."""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deepcache.errors import DeepCacheError
from deepcache.results import figures, tables, text
from deepcache.results.layout import Layout, Scalar
from deepcache.results.record import Record

_PNG = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")
_LONG_TABLE = 60  # rows; with more a table scrolls within the page
_MACHINE = ("device", "num_threads")  # settings that stand with the environment


@dataclass(frozen=True)
class Line:
    """A line of a table: `kind` is measured, published or difference; `cells` are printed numbers."""

    kind: str
    source: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A record with its lines in the table; the columns are sorted by `values`."""

    name: str
    outcome: str
    lines: tuple[Line, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Picture:
    """A picture of a record; `data` is the data URI of a PNG."""

    name: str
    alt: str
    data: str
    row: str


@dataclass(frozen=True)
class Section:
    """An experiment: its table, its figures, and `details`, everything that was recorded, a line a record.

    An experiment without a layout has no table.
    """

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
    """Write the report of these records to `path`.

    Raises:
        DeepCacheError: a picture is no PNG, or `path` cannot be written.
    """
    return text.write(path, page(records, made_by))


def page(records: Sequence[Record], made_by: str = "") -> str:
    """Return the report of these records as HTML.

    Args:
        records: all that was measured.
        made_by: the command that the page names as its own.

    Raises:
        DeepCacheError: there are no records, or a picture in them is no PNG.
    """
    if not records:
        raise DeepCacheError("expected records for a report, got none; `pytest bench/` makes some")
    grouped = list(tables.by_table(records))
    sections = [_section(layout, mine) for layout, mine in grouped]
    shown = [record for _, mine in grouped for record in mine]
    environment = Environment(
        loader=PackageLoader("deepcache.results"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found: str = environment.get_template("report.html").render(
        sections=sections,
        num_rows=len(records),
        num_failed=sum(section.num_failed for section in sections),
        facts=_facts(shown),
        environment=_environment(shown),
        made_by=made_by,
        num_colours=figures.NUM_COLOURS,
        long_table=_LONG_TABLE,
        dash=tables.DASH,
    )
    return found


def _section(layout: Layout, records: Sequence[Record]) -> Section:
    has_table = bool(layout.columns)
    plot = figures.svg(layout, records)
    headers, details = _details(records)
    return Section(
        anchor=layout.name,
        title=layout.title,
        headers=tuple(column.title for column in layout.columns),
        rows=tuple(_rows(layout, records)) if has_table else (),
        notes=tuple(_halves(note) for note in tables.notes(layout, records)) if has_table else (),
        plot=Markup(plot),  # matplotlib's XML, serialised by ElementTree
        plot_title=" over ".join(reversed(figures.titles(layout))) if plot else "",
        pictures=tuple(_picture(record, entry) for record in records for entry in record.pictures),
        detail_headers=headers,
        details=details,
        command=_again(records),
        num_failed=sum(record.outcome != "passed" for record in records),
    )


def _rows(layout: Layout, records: Sequence[Record]) -> Iterator[Row]:
    """Yield every record with its lines: measured, and where there is a published row, published and difference."""
    table = tables.build(layout, records)
    printed = tables.printed(layout, table)
    start = 0
    for record in records:
        kinds = ("measured",) if layout.beside(record.key) is None else ("measured", "published", "difference")
        lines = tuple(
            Line(kind, table["source"].iloc[start + i], tuple(printed.iloc[start + i, 2:]))
            for i, kind in enumerate(kinds)
        )
        measured = (table[column.metric].iloc[start] for column in layout.columns)
        values = tuple(None if pd.isna(value) else float(value) for value in measured)
        yield Row(record.label, record.outcome, lines, values)
        start += len(kinds)


def _picture(record: Record, entry: dict[str, str]) -> Picture:
    if not _PNG.fullmatch(entry["data"]):
        raise DeepCacheError(
            f"expected a PNG as a data URI in picture {entry['name']!r} of row {record.label!r}, got "
            f"{entry['data'][:40]!r}; make it with deepcache.results.figures.picture"
        )
    return Picture(entry["name"], entry["alt"], entry["data"], record.label)


def _halves(note: str) -> tuple[str, str]:
    name, colon, value = note.partition(": ")
    return (name, value) if colon else ("", note)


def _details(records: Sequence[Record]) -> tuple[tuple[str, ...], tuple[tuple[Scalar, ...], ...]]:
    """Return all that was recorded: settings that differ between rows, every metric, and the range over the seeds."""
    settings = [key for key in _keys(record.settings for record in records) if len(_distinct(key, records)) > 1]
    metrics, seeds = _keys(r.metrics for r in records), _keys(r.per_seed for r in records)
    ranges = [f"{key} of the seeds: lowest, median, highest" for key in seeds]
    lines = []
    for record in records:
        values = [record.settings.get(key) for key in settings] + [record.metrics.get(key) for key in metrics]
        lines.append((record.label, record.outcome, *values, *(_range(record.per_seed.get(key)) for key in seeds)))
    return ("row", "outcome", *settings, *metrics, *ranges), tuple(lines)


def _keys(mappings: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _distinct(key: str, records: Sequence[Record]) -> list[Scalar]:
    return list(dict.fromkeys(record.settings.get(key) for record in records))


def _range(values: Sequence[float] | None) -> str | None:
    if not values:
        return None
    return f"{min(values):.4g}, {statistics.median(values):.4g}, {max(values):.4g} ({len(values)})"


def _again(records: Sequence[Record]) -> str:
    """Return the command that runs the experiment again; an empty text where no record names its test."""
    files = dict.fromkeys(record.test for record in records if record.test)
    options = ["--benchmark-json", "results.json", "--paper-report", "report.html"]
    return shlex.join(["pytest", *files, *options]) if files else ""


def _facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return what was run, in one look."""
    keys = {"model": "models", "extractor": "measured with", "scheduler": "schedulers", "weights": "weights"}
    return [(name, _joined(r.settings.get(key) for r in records)) for key, name in keys.items()]


def _environment(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return the machine and the libraries of all records, with several values where they differ."""
    found = [(key, _joined(r.environment.get(key) for r in records)) for key in _keys(r.environment for r in records)]
    machine = [(key.replace("_", " "), _joined(r.settings.get(key) for r in records)) for key in _MACHINE]
    return [*found, *machine]


def _joined(values: Iterable[Scalar]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, "none"))) or tables.DASH

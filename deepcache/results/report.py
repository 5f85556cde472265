"""Records to one HTML page of tables, plots, pictures, environment and commands; the page needs no other file."""

from __future__ import annotations

import math
import re
import shlex
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from markupsafe import Markup

from deepcache.errors import DeepCacheError
from deepcache.results import figures, tables
from deepcache.results.layout import Layout, Scalar
from deepcache.results.record import Record
from deepcache.results.text import rendered

_PNG = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")
_FACTS = {"model": "models", "extractor": "measured with", "scheduler": "schedulers", "weights": "weights"}
_AGAIN = ("--benchmark-json", "results.json", "--paper-report", "report.html")  # runs an experiment again
_MACHINE = {"device": "device", "num_threads": "num threads"}  # settings that stand with the environment


def page(records: Sequence[Record], made_by: str = "") -> str:
    """Return the report of these records as HTML; `made_by` is the command that the page names as its own."""
    if not records:
        raise DeepCacheError("expected records for a report, got none; `pytest bench/` makes some")
    grouped = list(tables.by_table(records))
    sections = [_section(layout, mine) for layout, mine in grouped]
    shown = [record for _, mine in grouped for record in mine]
    machine = {name: name for name in _names(record.environment for record in shown)}
    return rendered(
        "report.html",
        sections=sections,
        num_rows=len(records),
        facts=_facts(shown, "settings", _FACTS),
        environment=[*_facts(shown, "environment", machine), *_facts(shown, "settings", _MACHINE)],
        made_by=made_by,
        dash=tables.DASH,
    )


def _section(layout: Layout, records: Sequence[Record]) -> dict[str, Any]:
    """Return what the template shows of an experiment: its table if it has columns, its figures, and all details."""
    plot = figures.svg(layout, records)
    headers, details = _details(records)
    files = dict.fromkeys(record.test for record in records if record.test)
    return {
        "layout": layout,
        "rows": list(_rows(layout, records)) if layout.columns else [],
        "notes": tables.notes(layout, records) if layout.columns else [],
        "plot": Markup(plot),  # matplotlib's XML, serialised by ElementTree
        "plot_title": " over ".join(reversed(figures.titles(layout))) if plot else "",
        "pictures": [_picture(record, entry) for record in records for entry in record.pictures],
        "detail_headers": headers,
        "details": details,
        "command": shlex.join(["pytest", *files, *_AGAIN]) if files else "",
        "num_failed": sum(record.outcome != "passed" for record in records),
    }


def _rows(layout: Layout, records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """Yield every record with its lines and its measured numbers, by which the page sorts the rows."""
    table = tables.build(layout, records)
    cells = tables.printed(layout, table).iloc[:, 2:].to_numpy().tolist()
    numbers = table.iloc[:, 2:].to_numpy().tolist()
    lines = zip(table["source"], cells, numbers, strict=True)
    for record in records:
        kinds = ("measured",) if layout.beside(record.key) is None else ("measured", "published", "difference")
        mine = list(islice(lines, len(kinds)))
        yield {
            "name": record.label,
            "outcome": record.outcome,
            "lines": [{"kind": k, "source": s, "cells": c} for k, (s, c, _) in zip(kinds, mine, strict=True)],
            "numbers": [None if math.isnan(number) else number for number in mine[0][2]],
        }


def _picture(record: Record, entry: dict[str, str]) -> dict[str, str]:
    if not _PNG.fullmatch(entry["data"]):
        raise DeepCacheError(
            f"expected a PNG as a data URI in picture {entry['name']!r} of row {record.label!r}, got "
            f"{entry['data'][:40]!r}; make it with deepcache.results.figures.picture"
        )
    return {**entry, "row": record.label}


def _details(records: Sequence[Record]) -> tuple[list[str], list[list[Scalar]]]:
    """Return all that was recorded: settings that differ between rows, every metric, and the range over the seeds."""
    known = _names(record.settings for record in records)
    settings = [name for name in known if len({record.settings.get(name) for record in records}) > 1]
    metrics, seeds = _names(r.metrics for r in records), _names(r.per_seed for r in records)
    lines = []
    for record in records:
        values = [*map(record.settings.get, settings), *map(record.metrics.get, metrics)]
        lines.append([record.label, record.outcome, *values, *(_range(record.per_seed.get(name)) for name in seeds)])
    ranges = [f"{name} of the seeds: lowest, median, highest" for name in seeds]
    return ["row", "outcome", *settings, *metrics, *ranges], lines


def _names(mappings: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(mappings)))


def _range(values: Sequence[float] | None) -> str | None:
    if not values:
        return None
    return f"{min(values):.4g}, {statistics.median(values):.4g}, {max(values):.4g} ({len(values)})"


def _facts(records: Sequence[Record], where: str, names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the different values of these settings, or of this environment, on a line each."""
    found = []
    for key, name in names.items():
        values = dict.fromkeys(str(getattr(record, where).get(key)) for record in records)
        found.append((name, ", ".join(value for value in values if value not in ("None", "none")) or tables.DASH))
    return found

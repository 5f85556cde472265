"""A record is one measured row: plain scalars only, one line of JSON, joined with other records by its key."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError, shown
from deepcache.files import json_value, read_text
from deepcache.results.layout import Closed, Layout, checked
from deepcache.results.text import encodable, of_each, plain

Scalars = dict[str, Any]  # of `Scalar`; `Record` checks them itself, with clearer messages than pydantic's
SCHEMA = 2
WHAT = "a results file"
MOST_BYTES = 256 << 20  # the records of all benches on the embedded models have 3 MiB
COUNTS = ("macs", "num_full", "num_shallow", "feature_bytes", "modules_full", "modules_shallow")
RATIOS = ("speedup", "shallow_share")  # of two times


@cache
def _libraries() -> Scalars:
    """Return the machine and the library versions that a number depends on."""
    versions = {name: version(name) for name in ("torch", "diffusers", "numpy", "deepcache-bench")}
    return {"machine": platform.processor() or platform.machine(), "python": platform.python_version(), **versions}


@dataclass(frozen=True)
class Record(Closed):
    """One measured row.

    Attributes:
        table: the layout of the table that the row stands in.
        key: what tells the row from the table's others and joins records, e.g. {"method": "uniform", "interval": 3}.
        settings: what was run: model, extractor, device, scheduler, plan, seeds.
        metrics: what was measured; a metric that was not measured is left out.
        environment: the machine and the library versions.
        outcome: the outcome of the test, in pytest's words; only "passed" is a pass.
        per_seed: a value for each sample in the order of the seeds, for paired comparison, e.g. {"psnr_db": [...]}.
        pictures: pictures as `deepcache.results.figures.picture` makes them.
        label: the name of the row in print alone; made from the key where none is given.
        test: the file of the test that measured the row, relative to pytest's root.

    Raises:
        TypeError, ValueError: a value is no plain scalar, or no such metric can have it.
    """

    table: Layout
    key: Scalars
    settings: Scalars
    metrics: Scalars
    environment: Scalars = field(default_factory=lambda: dict(_libraries()))
    outcome: str = "unknown"
    per_seed: dict[str, list[Any]] = field(default_factory=dict)
    pictures: list[dict[str, str]] = field(default_factory=list)
    label: str = ""
    test: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.table, Layout):
            raise TypeError(f"expected a Layout as the table of a record, got {shown(self.table)}")
        for name, values in self.per_seed.items():
            if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
                raise ValueError(f"expected finite numbers in per_seed[{name!r}]; give plain ones")
        for picture in self.pictures:
            if not {"name", "alt", "data"} <= set(picture):
                raise TypeError(f"expected name, alt and data in a picture, got {sorted(picture)}")
        for where in ("key", "settings", "metrics", "environment"):
            for name, value in getattr(self, where).items():
                _check(where, name, value)
        if not self.label:
            known = {name: each for name, each in self.key.items() if each is not None}
            words = [each if isinstance(each, str) else f"{name} {each}" for name, each in known.items()]
            object.__setattr__(self, "label", ", ".join(words) or self.table.name)

    def as_dict(self) -> dict[str, Any]:
        """Return the record for JSON, with the name of its table in place of the layout."""
        return dict(of_each({"schema": SCHEMA, **vars(self), "table": self.table.name}, encodable))

    def displayed(self, table: Layout) -> Record:
        """Return the record in `table` with every text on one line, as tables and pages show it."""
        return Record(**of_each({**vars(self), "table": table}, plain))


def _check(where: str, name: str, value: Any) -> None:
    """Require a plain scalar that is finite; a measured count is at least 0, and a ratio of times is above 0."""
    place = f"{where}[{name!r}]"
    if type(value) not in (str, int, float, bool, type(None)):
        raise TypeError(f"expected a plain scalar in {place}, got a {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number in {place}, got {value}; leave it out instead")
    if value is None or where not in ("settings", "metrics") or name not in (*COUNTS, *RATIOS):
        return
    if isinstance(value, (str, bool)):
        raise TypeError(f"expected a number in {place}, got {shown(value)}; leave it out where it was not measured")
    if value < 0 or (name in RATIOS and value == 0):
        raise ValueError(f"expected a number {'above' if name in RATIOS else 'of at least'} 0 in {place}, got {value}")


def layout_entry(layout: Layout) -> dict[str, Any]:
    """Return the entry that says, in a results file, how a table looks."""
    return {"schema": SCHEMA, "layout": of_each(asdict(layout), encodable)}


def from_entries(entries: Sequence[Any], source: object = "the session") -> list[Record]:
    """Return the records of a results file with their layouts; an error names `source` and the place of the entry."""
    layouts: dict[str, Layout] = {}
    records = []
    for number, entry in enumerate(entries, 1):
        try:
            own = _of_this_schema(entry)
            if "layout" in own:
                layout = checked(Layout, own["layout"], "the layout of a table")
                layouts.setdefault(layout.name, layout)
            else:
                known = {"environment": {}, **own, "table": {"name": own.get("table")}}
                records.append(checked(Record, known, "a record"))
        except DeepCacheError as error:
            raise DeepCacheError(f"{source} holds something that is no record, at place {number}: {error}") from error
    return [replace(record, table=layouts.get(record.table.name, record.table)) for record in records]


def _of_this_schema(entry: Any) -> dict[str, Any]:
    """Return the fields of an entry without its schema."""
    if not isinstance(entry, Mapping):
        raise DeepCacheError(f"expected an object with the fields of a record or a layout, got {shown(entry)}")
    if entry.get("schema") != SCHEMA:
        raise DeepCacheError(
            f"expected records of schema {SCHEMA}, got schema {shown(entry.get('schema'))}; run the benches again, or "
            "use the version of deepcache-bench that wrote them"
        )
    return {name: value for name, value in entry.items() if name != "schema"}


def read(path: Path) -> list[Record]:
    """Read the records of a file of JSON lines, without a last line that a crash cut off, or of a whole JSON file.

    Raises:
        DeepCacheError: no such file, a file of another kind, truncated JSON, another schema, or no record in it.
    """
    text = read_text(path, WHAT, most_bytes=MOST_BYTES)
    try:
        entries = json_value(text or "null", WHAT, path)
    except DeepCacheError as error:
        if getattr(error.__cause__, "msg", "") != "Extra data":  # a JSONDecodeError has it for a second value
            raise
        entries = _of_lines(path, text)
    if isinstance(entries, dict):
        entries = entries.get("deepcache", [entries] if "schema" in entries else None)
    records = from_entries(entries if isinstance(entries, list) else [], path)
    if not records:
        raise DeepCacheError(f"{path} holds no records; `pytest bench/ --benchmark-json FILE` writes some")
    return records


def _of_lines(path: Path, text: str) -> list[Any]:
    *whole, last = enumerate(text.split("\n"), 1)  # JSON may hold other line breaks, which splitlines would split
    found = [json_value(line, WHAT, f"line {number} of {path}") for number, line in whole if line.strip()]
    try:
        found.append(json_value(last[1], WHAT, f"line {last[0]} of {path}"))
    except DeepCacheError as error:
        if not isinstance(error.__cause__, json.JSONDecodeError):  # else a crash cut the line off
            raise
    return found

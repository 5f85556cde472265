"""A record is one measured row: plain scalars only, one line of JSON, joined with other records by its key."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

from deepcache.errors import DeepCacheError, first_line, shown
from deepcache.files import json_value, read_text
from deepcache.results.layout import Layout, Scalar, in_words, layout_from
from deepcache.results.text import encodable, of_each, plain

SCHEMA = 2
WHAT = "a results file"
MOST_BYTES = 256 << 20  # the records of all benches on the embedded models have 3 MiB
COUNTS = ("macs", "num_full", "num_shallow", "feature_bytes", "modules_full", "modules_shallow")
RATIOS = ("speedup", "shallow_share")  # of two times
_SCALARS = ("key", "settings", "metrics", "environment")


@cache
def _libraries() -> dict[str, Scalar]:
    """Return the machine and the library versions that a number depends on."""
    packages = ("torch", "diffusers", "numpy", "deepcache-bench")
    return {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


@dataclass(frozen=True)
class Record:
    """One measured row.

    Attributes:
        table: the layout of the table that the row stands in.
        key: what tells the row from the other rows of the table, e.g. {"method": "uniform", "interval": 3}. Published
            rows, the gate and every program that looks for a row find it by the key.
        settings: what was run: model, extractor, device, scheduler, plan, seeds.
        metrics: what was measured; a metric that was not measured is left out.
        environment: the machine and the library versions.
        outcome: the outcome of the test, in pytest's words; only "passed" is a pass.
        per_seed: a value for each sample in the order of the seeds, for paired comparison, e.g. {"psnr_db": [...]}.
        pictures: pictures as `deepcache.results.figures.picture` makes them.
        label: the name of the row in print; made from the key where none is given. Nothing is joined by it.
        test: the file of the test that measured the row, relative to pytest's root.

    Raises:
        TypeError, ValueError: a value that is no plain scalar, or that no such metric can have.
    """

    table: Layout
    key: dict[str, Scalar]
    settings: dict[str, Scalar]
    metrics: dict[str, Scalar]
    environment: dict[str, Scalar] = field(default_factory=lambda: dict(_libraries()))
    outcome: str = "unknown"
    per_seed: dict[str, list[float]] = field(default_factory=dict)
    pictures: list[dict[str, str]] = field(default_factory=list)
    label: str = ""
    test: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.table, Layout):
            raise TypeError(f"expected a Layout as the table of a record, got {shown(self.table)}")
        for name, values in self.per_seed.items():
            if not all(type(value) is float and math.isfinite(value) for value in values):
                raise ValueError(f"expected finite floats in per_seed[{name!r}]; give plain ones")
        for picture in self.pictures:
            if not {"name", "alt", "data"} <= set(picture):
                raise TypeError(f"expected name, alt and data in a picture, got {sorted(picture)}")
        for where in _SCALARS:
            for name, value in getattr(self, where).items():
                _require_scalar(f"{where}[{name!r}]", value)
        for name in (*COUNTS, *RATIOS):
            for where in ("settings", "metrics"):
                _require_amount(f"{where}[{name!r}]", getattr(self, where).get(name), above_zero=name in RATIOS)
        if not self.label:
            object.__setattr__(self, "label", ", ".join(_words(self.key)) or self.table.name)

    def as_dict(self) -> dict[str, Any]:
        """Return the record for JSON, with the name of its table in place of the layout."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {"schema": SCHEMA, **of_each({**own, "table": self.table.name}, encodable)}

    def displayed(self, table: Layout) -> Record:
        """Return the record in `table` with every text on one line, as tables and pages show it."""
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "table"}
        return Record(table=table, **of_each(own, plain))


def _words(key: Mapping[str, Scalar]) -> Iterator[str]:
    for name, value in key.items():
        if value is not None:
            yield value if isinstance(value, str) else f"{name} {value}"


def _require_scalar(place: str, value: object) -> None:
    if type(value) not in (str, int, float, bool, type(None)):
        raise TypeError(f"expected a plain scalar in {place}, got a {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number in {place}, got {value}; leave it out instead")


def _require_amount(place: str, value: Scalar, *, above_zero: bool) -> None:
    """Require a count of at least 0, or a ratio of times above 0; either may be missing."""
    if value is None:
        return
    if isinstance(value, (str, bool)):
        raise TypeError(f"expected a number in {place}, got {shown(value)}; leave it out where it was not measured")
    if value < 0 or (above_zero and value == 0):
        raise ValueError(f"expected a number {'above' if above_zero else 'of at least'} 0 in {place}, got {value}")


def layout_entry(layout: Layout) -> dict[str, Any]:
    """Return the entry that says, in a results file, how a table looks."""
    return {"schema": SCHEMA, "layout": layout.as_dict()}


def from_dict(entry: Any, layouts: Mapping[str, Layout] | None = None) -> Record:
    """Return the record that `Record.as_dict` made `entry` from.

    Args:
        entry: the record as JSON has it.
        layouts: the known tables by their names; a table that is not known has no columns.

    Raises:
        DeepCacheError: another schema, or an entry that is no record.
    """
    from pydantic import ValidationError  # slow to import, and a session without records needs none of it

    own = _of_this_schema(entry, "a record")
    try:
        known = _fields().model_validate(own).model_dump()
        name = known.pop("table")
        return Record(table=(layouts or {}).get(name) or Layout(name), **known)
    except ValidationError as error:
        raise DeepCacheError(f"expected a record ({in_words(error)}); run the benches again") from error
    except (TypeError, ValueError) as error:
        raise DeepCacheError(f"expected a record ({first_line(error)}); run the benches again") from error


@cache
def _fields() -> Any:
    """Return a pydantic model of a record's JSON; `Record` itself checks the scalars."""
    from pydantic import ConfigDict, create_model

    hints = {**get_type_hints(Record), **dict.fromkeys(_SCALARS, dict[str, Any]), "table": str}
    defaults = {each.name: each.default for each in fields(Record) if each.default is not MISSING}
    defaults |= {"environment": {}, "per_seed": {}, "pictures": []}
    known: dict[str, Any] = {each.name: (hints[each.name], defaults.get(each.name, ...)) for each in fields(Record)}
    return create_model("Fields", __config__=ConfigDict(strict=True, extra="forbid"), **known)


def from_entries(entries: Sequence[Any], source: object = "the session") -> list[Record]:
    """Return the records among the entries of a results file, each with its layout if that is among them.

    Raises:
        DeepCacheError: an entry is neither a record nor a layout; the message names `source` and the entry's place.
    """
    layouts: dict[str, Layout] = {}
    records = []
    for number, entry in enumerate(entries, 1):
        try:
            if isinstance(entry, Mapping) and "layout" in entry:
                layout = layout_from(_of_this_schema(entry, "a layout")["layout"])
                layouts.setdefault(layout.name, layout)
            else:
                records.append(from_dict(entry))
        except DeepCacheError as error:
            raise DeepCacheError(f"{source} holds something that is no record, at place {number}: {error}") from error
    return [replace(record, table=layouts.get(record.table.name, record.table)) for record in records]


def _of_this_schema(entry: Any, what: str) -> dict[str, Any]:
    """Return the fields of an entry without its schema."""
    if not isinstance(entry, Mapping):
        raise DeepCacheError(f"expected an object with the fields of {what}, got {shown(entry)}")
    schema = entry.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        raise DeepCacheError(
            f"expected records of schema {SCHEMA}, got schema {shown(schema)}; run the benches again, or use the "
            "version of deepcache-bench that wrote them"
        )
    return {name: value for name, value in entry.items() if name != "schema"}


def read(path: Path) -> list[Record]:
    """Read the records of a file of JSON lines, of pytest-benchmark's JSON, or of a baseline.

    A last line that was cut off by a crash is left out.

    Raises:
        DeepCacheError: no such file, a file of another kind, truncated JSON, another schema, or no record in it.
    """
    text = read_text(path, WHAT, most_bytes=MOST_BYTES)
    entries = list(_lines(path, text)) if _is_json_lines(text) else _entries(json_value(text or "null", WHAT, path))
    records = from_entries(entries, path)
    if not records:
        raise DeepCacheError(f"{path} holds no records; `pytest bench/ --benchmark-json FILE` writes some")
    return records


def _entries(whole: Any) -> list[Any]:
    """Return the entries of pytest-benchmark's JSON, of a baseline, or of a lone record."""
    if isinstance(whole, dict):
        found = whole.get("deepcache", [whole] if "schema" in whole else None)
        return found if isinstance(found, list) else []
    return whole if isinstance(whole, list) else []


def _is_json_lines(text: str) -> bool:
    """Whether the first of several lines is a JSON value; the first line of a document in many lines is a bracket."""
    first, _, rest = text.strip().partition("\n")
    if not rest:
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(path: Path, text: str) -> Iterator[Any]:
    lines = text.split("\n")  # JSON may hold other line breaks within its strings, which splitlines would split
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield json_value(line, WHAT, f"line {number} of {path}")
        except DeepCacheError as error:
            if number == len(lines) and isinstance(error.__cause__, json.JSONDecodeError):
                return  # cut off by a crash: a whole line ends with a line break
            raise

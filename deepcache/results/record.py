"""One measured row: plain scalars only, one line of JSON."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError, first_line, shown
from deepcache.files import json_value, read_text
from deepcache.results.text import encodable, of_each, plain

SCHEMA = 1
WHAT = "a results file"
MOST_BYTES = 256 << 20  # the records of all benches on the embedded models have 3 MiB
COUNTS = ("macs", "num_full", "num_shallow", "feature_bytes", "modules_full", "modules_shallow")
RATIOS = ("speedup", "shallow_share")  # of times
Scalar = str | int | float | bool | None


@cache
def _libraries() -> dict[str, Scalar]:
    """The machine and the libraries that a number depends on."""
    packages = ("torch", "diffusers", "numpy", "deepcache-bench")
    return {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


@dataclass(frozen=True)
class Record:
    """What one benchmark found.

    Attributes:
        experiment: the table or figure, e.g. "table1".
        row: the method's name in that table, e.g. "uniform N=3".
        settings: model, extractor, device, scheduler, plan, seeds: what was run.
        metrics: what was measured; a metric that was not is left out.
        environment: machine and library versions.
        outcome: of the test, as pytest calls it; only "passed" is a pass.
        per_seed: a value for each sample, in the order of the seeds, e.g. {"psnr_db": [...]}: for paired comparison.
        pictures: what is looked at rather than read (`deepcache.results.picture`).
    """

    experiment: str
    row: str
    settings: dict[str, Scalar]
    metrics: dict[str, Scalar]
    environment: dict[str, Scalar] = field(default_factory=lambda: dict(_libraries()))
    outcome: str = "unknown"
    per_seed: dict[str, list[float]] = field(default_factory=dict)
    pictures: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key, values in self.per_seed.items():
            if not all(type(value) is float and math.isfinite(value) for value in values):
                raise ValueError(f"expected finite floats in per_seed[{key!r}]; give plain ones")
        for picture in self.pictures:
            if not {"name", "alt", "data"} <= set(picture):
                raise TypeError(f"expected name, alt and data in a picture, got {sorted(picture)}")
        for name in ("settings", "metrics", "environment"):
            for key, value in getattr(self, name).items():
                _require_scalar(f"{name}[{key!r}]", value)
        for key in (*COUNTS, *RATIOS):
            for name in ("settings", "metrics"):
                _require_amount(f"{name}[{key!r}]", getattr(self, name).get(key), above_zero=key in RATIOS)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: half a character, as in a file name of another encoding, becomes its escape."""
        return {"schema": SCHEMA, **of_each(asdict(self), encodable)}

    def displayed(self) -> Record:
        """The same with every text on one line, as tables and pages show it."""
        return Record(**of_each(asdict(self), plain))


def _require_scalar(place: str, value: object) -> None:
    if type(value) not in (str, int, float, bool, type(None)):
        raise TypeError(f"expected a plain scalar in {place}, got a {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number in {place}, got {value}; leave it out instead")


def _require_amount(place: str, value: Scalar, *, above_zero: bool) -> None:
    """A count is a number of at least 0, a ratio of times one above 0; either may be missing."""
    if value is None:
        return
    if isinstance(value, (str, bool)):
        raise TypeError(f"expected a number in {place}, got {shown(value)}; leave it out where it was not measured")
    if value < 0 or (above_zero and value == 0):
        raise ValueError(f"expected a number {'above' if above_zero else 'of at least'} 0 in {place}, got {value}")


def from_dict(entry: Mapping[str, Any]) -> Record:
    """A record from `as_dict`'s result.

    Raises:
        DeepCacheError: another schema, or an entry that is no record.
    """
    from deepcache.results.schema import fields  # pydantic, which a pytest session without records need not import

    if not isinstance(entry, Mapping):
        raise DeepCacheError(f"expected an object with the fields of a record, got {shown(entry)}")
    if entry.get("schema") != SCHEMA or isinstance(entry.get("schema"), bool):
        raise DeepCacheError(
            f"expected records of schema {SCHEMA}, got schema {shown(entry.get('schema'))}; run the benches again, or "
            "use the version of deepcache-bench that wrote them"
        )
    try:
        return Record(**fields({key: value for key, value in entry.items() if key != "schema"}))
    except (TypeError, ValueError) as error:
        raise DeepCacheError(f"expected a record ({first_line(error)}); run the benches again") from error


def read(path: Path) -> list[Record]:
    """Records from a file of JSON lines, or from pytest-benchmark's JSON.

    A last line that was cut off by a crash is left out.

    Raises:
        DeepCacheError: no such file, a file of another kind, truncated JSON, another schema, or no record in it.
    """
    text = read_text(path, WHAT, most_bytes=MOST_BYTES)
    entries = list(_lines(path, text)) if _is_json_lines(text) else _entries(json_value(text or "null", WHAT, path))
    if not entries:
        raise DeepCacheError(f"{path} holds no records; `pytest bench/ --benchmark-json FILE` writes some")
    return [_record(path, number, entry) for number, entry in enumerate(entries, 1)]


def _record(path: Path, number: int, entry: Any) -> Record:
    try:
        return from_dict(entry)
    except DeepCacheError as error:
        raise DeepCacheError(f"{path} holds something that is no record, at place {number}: {error}") from error


def _entries(whole: Any) -> list[Any]:
    """The records of pytest-benchmark's JSON, of a baseline, or a lone record."""
    if isinstance(whole, dict):
        found = whole.get("deepcache", [whole] if "schema" in whole else None)
        return found if isinstance(found, list) else []
    return whole if isinstance(whole, list) else []


def _is_json_lines(text: str) -> bool:
    """Whether the first of several lines is a value of its own; of a document in many lines it is a bracket."""
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

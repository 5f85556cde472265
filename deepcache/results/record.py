"""One measured row: plain scalars only, one line of JSON."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError

SCHEMA = 1
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
        outcome: "passed" or "failed", of the test.
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
                if type(value) not in (str, int, float, bool, type(None)):
                    raise TypeError(f"expected a plain scalar in {name}[{key!r}], got a {type(value).__name__}")
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"expected a finite number in {name}[{key!r}], got {value}; leave it out instead")

    def as_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


def from_dict(entry: Mapping[str, Any]) -> Record:
    """A record from `as_dict`'s result.

    Raises:
        DeepCacheError: another schema.
    """
    if entry.get("schema") != SCHEMA:
        raise DeepCacheError(
            f"expected records of schema {SCHEMA}, got schema {entry.get('schema')!r}; run the benches again, or use "
            "the version of deepcache-bench that wrote them"
        )
    return Record(**{key: value for key, value in entry.items() if key != "schema"})


def read(path: Path) -> list[Record]:
    """Records from a file of JSON lines, or from pytest-benchmark's JSON.

    A last line that was cut off by a crash is left out.

    Raises:
        DeepCacheError: no such file, a file of another kind, truncated JSON, another schema, or no record in it.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DeepCacheError(f"expected a results file at {path}: {error}; `pytest bench/` writes one") from error
    try:
        whole = json.loads(text)
        entries = whole.get("deepcache", [whole] if "schema" in whole else [])
    except (json.JSONDecodeError, AttributeError):
        entries = list(_lines(path, text))
    if not entries:
        raise DeepCacheError(f"{path} holds no records; `pytest bench/ --benchmark-json FILE` writes some")
    return [_record(path, entry) for entry in entries]


def _record(path: Path, entry: Any) -> Record:
    try:
        return from_dict(entry)
    except (TypeError, ValueError, AttributeError) as error:
        raise DeepCacheError(f"{path} holds something that is no record ({error}); run the benches again") from error


def _lines(path: Path, text: str) -> Iterable[Any]:
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) > 1 and not text.endswith("\n"):
                return  # cut off by a crash
            raise DeepCacheError(f"line {number} of {path} is truncated or no JSON; run the benches again") from error

"""Layouts say how records become a table and a plot, and which published numbers stand beside them.

A layout travels with its records into every results file, so that any suite's tables are made without importing it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar, TypeVar, cast

from deepcache.errors import DeepCacheError, first_line, on_one_line, shown
from deepcache.results.text import of_each, plain

T = TypeVar("T")
Scalar = str | int | float | bool | None
PROTOCOL = ("model", "uncached_steps", "num_samples", "guidance_scale", "prompts")  # settings that a score depends on
_NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)  # names become file names and anchors of a page
_MOST_DIGITS = 12


class Closed:
    """pydantic refuses a field that the class does not name."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True)
class Column(Closed):
    """A metric as a table prints it.

    Attributes:
        metric: the name of the metric in a record.
        title: the head of the column, with the printed unit.
        digits: how many digits stand after the point.
        published: the name of the same quantity among published values; empty where the paper does not have it.
        scale: how many of the recorded unit one printed unit holds, e.g. 1e9 where MACs are printed in G.
        same: the settings that a record and its published row share if their difference means something; None if never.
    """

    metric: str
    title: str
    digits: int
    published: str = ""
    scale: float = 1.0
    same: tuple[str, ...] | None = (*PROTOCOL, "extractor")

    def __post_init__(self) -> None:
        if not 0 <= self.digits <= _MOST_DIGITS:
            raise ValueError(f"expected 0 to {_MOST_DIGITS} digits, got {self.digits}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"expected a finite scale above 0, got {self.scale}")


@dataclass(frozen=True)
class Plot(Closed):
    """A plot of metric `y` over metric `x`, with a curve for each value of `by`, a part of the key or a setting."""

    x: str
    y: str
    x_title: str
    y_title: str
    by: str = "curve"


@dataclass(frozen=True)
class Published(Closed):
    """Published numbers that stand beneath the rows with this key.

    Attributes:
        key: parts of a record's key; a record whose key has all of them is the counterpart of the published row.
        values: the published numbers, by the names that columns call `published`.
        label: what was published and how it was measured, for the notes of the table.
        settings: how it was measured, by the names that records use for their settings.
        note: a remark on this row alone.
    """

    key: dict[str, Scalar]
    values: dict[str, float]
    label: str
    settings: dict[str, Scalar] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            raise ValueError("expected a published row with a key, got none; name what it stands beside")
        if not all(map(math.isfinite, self.values.values())):
            raise ValueError(f"expected finite published values, got {shown(self.values)}")


@dataclass(frozen=True)
class Layout(Closed):
    """A table, its published rows, and its plot.

    Attributes:
        name: what files and records call the table, e.g. "table1".
        title: the heading of the table; the name if not given.
        columns: the metrics that are printed, from left to right.
        published: published rows; the first that fits a record stands beneath it.
        plot: the plot of the same records.
        number: the number of the table in the paper; numbered tables come first in a report.
        look: a sentence that says what to look at in the table.
    """

    name: str
    title: str = ""
    columns: tuple[Column, ...] = ()
    published: tuple[Published, ...] = ()
    plot: Plot | None = None
    number: int | None = None
    look: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(f"expected a table's name of letters, digits, '_', '-' and '.', got {shown(self.name)}")
        for what in ("metric", "title"):
            names = [getattr(column, what) for column in self.columns]
            if len({"method", "source", *names}) < len(names) + 2:
                raise ValueError(f"expected columns of different {what}s beside method and source, got {shown(names)}")
        if not self.title:
            object.__setattr__(self, "title", self.name)

    def beside(self, key: Mapping[str, Scalar]) -> Published | None:
        """Return the published row beneath a record of this key, or None."""
        return next((row for row in self.published if row.key.items() <= key.items()), None)

    def displayed(self) -> Layout:
        """Return the layout with every text on one line, as tables and pages show it."""
        return checked(Layout, of_each(asdict(self), plain), "the layout of a table")


def checked(kind: Callable[..., T], entry: object, what: str) -> T:
    """Return an entry of a results file as an instance of its dataclass, or say where its first fault is."""
    try:
        return cast("T", _adapter(kind).validate_python(entry))
    except (TypeError, ValueError) as error:  # a ValidationError of pydantic is a ValueError
        reason = first_line(error)
        if hasattr(error, "errors"):
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
            reason = on_one_line(": ".join(filter(None, (place, said[:1].lower() + said[1:]))))
        raise DeepCacheError(f"expected {what} ({reason}); run the benches again") from error


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # slow to import, and a session without records needs none of it

    return TypeAdapter(kind)


@cache
def published() -> dict[str, Any]:
    """Return the paper's own numbers, as published.json has them: `source`, `units`, `branch` and `rows`."""
    return dict(json.loads(files("deepcache.results").joinpath("published.json").read_text()))


def published_row(**match: Any) -> dict[str, Any]:
    """Return the first row of published.json with these values, e.g. table="Table 1", method="Uniform - N=2"."""
    rows = [dict(row) for row in published()["rows"] if match.items() <= row.items()]
    if not rows:
        raise LookupError(f"expected a row of published.json, found none with {match}")
    return rows[0]

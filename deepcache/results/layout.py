"""How the records of an experiment become a table and a plot.

A layout is plain data: it travels with the records into every results file, so that tables and reports are made from
the results of any suite without importing that suite.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from deepcache.errors import DeepCacheError, first_line, shown
from deepcache.results.text import encodable, of_each, plain

Scalar = str | int | float | bool | None
PROTOCOL = ("model", "uncached_steps", "num_samples", "guidance_scale", "prompts")  # settings that a score depends on
_NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)  # names become file names and anchors of a page
_MOST_DIGITS = 12


@dataclass(frozen=True)
class Column:
    """A metric as a table prints it.

    Attributes:
        metric: the name of the metric in a record.
        title: the head of the column, with the printed unit.
        digits: how many digits stand after the point.
        published: the name of the same quantity among published values; empty where the paper does not have it.
        scale: how many of the recorded unit one printed unit holds, e.g. 1e9 where MACs are printed in G.
        same: the settings that a record must share with the published row for their difference to mean something;
            None where a difference never means anything.
    """

    metric: str
    title: str
    digits: int
    published: str = ""
    scale: float = 1.0
    same: tuple[str, ...] | None = (*PROTOCOL, "extractor")

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        if not 0 <= self.digits <= _MOST_DIGITS:
            raise ValueError(f"expected 0 to {_MOST_DIGITS} digits, got {self.digits}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"expected a finite scale above 0, got {self.scale}")


@dataclass(frozen=True)
class Plot:
    """A plot of metric `y` over metric `x`, with a curve for each value of `by`, a part of the key or a setting."""

    x: str
    y: str
    x_title: str
    y_title: str
    by: str = "curve"

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


@dataclass(frozen=True)
class Published:
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

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        if not self.key:
            raise ValueError("expected a published row with a key, got none; name what it stands beside")
        for value in self.values.values():
            if not math.isfinite(value):
                raise ValueError(f"expected finite published values, got {value}")

    def is_beside(self, key: Mapping[str, Scalar]) -> bool:
        """Whether a record of this key is the counterpart."""
        return all(name in key and key[name] == value for name, value in self.key.items())


@dataclass(frozen=True)
class Layout:
    """A table, its published rows, and its plot.

    Attributes:
        name: what files and records call the table, e.g. "table1".
        title: the heading of the table.
        columns: the metrics that are printed, from left to right.
        published: published rows; the first that fits a record stands beneath it.
        plot: the plot of the same records.
        number: the number of the table in the paper; numbered tables come first in a report, the others in the order
            in which their first records come.
    """

    name: str
    title: str = ""
    columns: tuple[Column, ...] = ()
    published: tuple[Published, ...] = ()
    plot: Plot | None = None
    number: int | None = None

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

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
        return next((row for row in self.published if row.is_beside(key)), None)

    def as_dict(self) -> dict[str, Any]:
        """Return the layout for JSON."""
        found: dict[str, Any] = of_each(asdict(self), encodable)
        return found

    def displayed(self) -> Layout:
        """Return the layout with every text on one line, as tables and pages show it."""
        return layout_from(of_each(asdict(self), plain))


def layout_from(entry: object) -> Layout:
    """Return the layout that `Layout.as_dict` made `entry` from.

    Raises:
        DeepCacheError: the entry is no layout.
    """
    from pydantic import ValidationError  # slow to import, and a session without records needs none of it

    try:
        found: Layout = _adapter().validate_python(entry)
        return found
    except ValidationError as error:
        raise DeepCacheError(f"expected the layout of a table ({in_words(error)}); run the benches again") from error


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Layout)


def in_words(error: Any) -> str:
    """Return the first finding of a pydantic.ValidationError: where it is, and what is wrong."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return first_line(ValueError(f"{'.'.join(map(str, found['loc']))}: {found['msg'][:1].lower()}{found['msg'][1:]}"))


def by_number(layouts: Mapping[str, Layout]) -> Iterator[Layout]:
    """Yield the tables in the order of a report."""
    yield from sorted(layouts.values(), key=lambda layout: math.inf if layout.number is None else layout.number)

"""How an experiment's records become a table and a plot: columns, rows, and their published counterparts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PROTOCOL = ("model", "uncached_steps", "num_samples", "guidance_scale", "prompts")  # settings that a score depends on


@dataclass(frozen=True)
class Column:
    """A metric as it is printed.

    `key` in a record's metrics and `published` in the paper's rows; `digits` after the point; `scale` the
    number that a printed unit holds of the recorded one. `same` is what a record must have in common with the
    published row for their difference to mean something: settings by name, or None where it never does.
    """

    key: str
    title: str
    digits: int
    published: str = ""
    scale: float = 1.0
    same: tuple[str, ...] | None = (*PROTOCOL, "extractor")


@dataclass(frozen=True)
class Plot:
    """Metric `y` over metric `x`, a curve for each value of the setting `by`."""

    x: str
    y: str
    x_title: str
    y_title: str
    by: str = "curve"


@dataclass(frozen=True)
class Layout:
    """A table, of the paper or beyond it, and its plot.

    `rows` maps a record's row to what singles out the published row beside it (`published.row`);
    `published_settings` are the paper's, by the names that records use, and `models` those of rows that have others.
    A table that the paper does not have leaves these empty. One that it has for several sets of prompts has the others
    in `of_prompts`, by what records call the prompts.
    """

    experiment: str
    title: str
    columns: tuple[Column, ...]
    published_table: str = ""
    published_label: str = ""
    published_settings: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    plot: Plot | None = None
    of_prompts: dict[str, Layout] = field(default_factory=dict)

    def beside(self, settings: Mapping[str, Any]) -> Layout:
        """The one whose published rows stand beside a record with these settings."""
        return self.of_prompts.get(settings.get("prompts", ""), self)

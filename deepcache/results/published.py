"""The paper's own numbers, every table of it (published.json; units at its top)."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def published() -> dict[str, Any]:
    """The whole file: `source`, `units`, `branch`, `rows`."""
    found: dict[str, Any] = json.loads(files("deepcache.results").joinpath("published.json").read_text())
    return found


def row(**match: Any) -> dict[str, Any]:
    """The published row with these values, e.g. (table="Table 1", method="Uniform - N=2"); empty if there is none."""
    for entry in published()["rows"]:
        if all(entry.get(name) == value for name, value in match.items()):
            return dict(entry)
    return {}

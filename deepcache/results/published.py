"""The paper's own numbers: every table of the paper is in published.json, with the units at the top of that file."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def published() -> dict[str, Any]:
    """Return the whole file: `source`, `units`, `branch` and `rows`."""
    found: dict[str, Any] = json.loads(files("deepcache.results").joinpath("published.json").read_text())
    return found


def row(**match: Any) -> dict[str, Any]:
    """Return the first published row with these values.

    Args:
        match: what singles out the row, e.g. table="Table 1", method="Uniform - N=2".

    Raises:
        LookupError: the paper has no such row.
    """
    for entry in published()["rows"]:
        if all(entry.get(name) == value for name, value in match.items()):
            return dict(entry)
    raise LookupError(f"expected a row of published.json, found none with {match}")

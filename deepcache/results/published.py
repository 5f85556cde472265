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


def row(table: str, method: str) -> dict[str, Any]:
    """One row of a published table, e.g. ("Table 1", "Uniform - N=2"); empty if there is none."""
    matching = [entry for entry in published()["rows"] if entry["table"] == table and entry["method"] == method]
    return dict(matching[0]) if matching else {}

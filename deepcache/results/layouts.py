"""All tables, in the order in which they are shown."""

from __future__ import annotations

from deepcache.results import beyond, experiments
from deepcache.results.layout import Layout

LAYOUTS: tuple[Layout, ...] = tuple(
    value for module in (experiments, beyond) for value in vars(module).values() if isinstance(value, Layout)
)

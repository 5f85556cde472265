"""One table over all experiments: a line a record, its settings and metrics in common columns."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from deepcache.results.record import Record
from deepcache.results.text import markdown

SETTINGS = ("model", "scheduler", "num_steps", "branch", "interval", "order")
METRICS = ("macs", "speedup", "fid", "clip_score", "psnr_db", "psnr_median_db", "tipped", "feature_bytes", "peak_bytes")


def overview(records: Sequence[Record]) -> pd.DataFrame:
    """Columns `experiment`, `row`, `outcome`, then `SETTINGS` and `METRICS`; NaN where a record has none."""
    lines = [
        {
            "experiment": record.experiment,
            "row": record.row,
            "outcome": record.outcome,
            **{name: record.settings.get(name) for name in SETTINGS},
            **{name: record.metrics.get(name) for name in METRICS},
        }
        for record in records
    ]
    return pd.DataFrame(lines, columns=["experiment", "row", "outcome", *SETTINGS, *METRICS])


def to_markdown(table: pd.DataFrame) -> str:
    """With a dash for what there is not, and whole numbers without a point."""
    shown = table.map(_cell)
    return f"### All experiments\n\n{shown.to_markdown(index=False, disable_numparse=True)}\n"


def _cell(value: object) -> str:
    if value is None or pd.isna(value):
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
    return markdown(str(value))

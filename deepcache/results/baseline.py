"""Baselines as files: a record a line, and of each record only what is gated, so that a committed file stays small."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deepcache.errors import DeepCacheError
from deepcache.files import write_text
from deepcache.results.compare import CONDITIONS, FIDELITY, RUN, SPEED, differences, number
from deepcache.results.gate import by_identity, label
from deepcache.results.layout import Layout
from deepcache.results.record import COUNTS, Record, read

_SETTINGS = (*RUN, *CONDITIONS, *COUNTS)
_METRICS = (*COUNTS, *SPEED)
_ENVIRONMENT = ("machine", "torch", "diffusers")  # a changed number may come from these
_STEADY = 3  # the median of so many runs is safe from one slow minute
_DIGITS = 4  # of values of single seeds, far below the tolerances


def update(path: Path, runs: Sequence[Sequence[Record]]) -> str:
    """Replace the experiments of these runs in the baseline at `path`, and keep its other experiments.

    Args:
        path: the baseline; a new file is made where there is none.
        runs: the records of one or several runs. The baseline takes the median over the runs for every ratio of times,
            which is steadier than one run, and everything else from the first run.

    Returns:
        A sentence that says what was written.

    Raises:
        DeepCacheError: a record did not pass or stands there twice, a run lacks records of the first or was made under
            other conditions, or the file cannot be read or written.
    """
    identified = [by_identity(run, "the results") for run in runs]
    for k, record in identified[0].items():
        for run in identified:
            if k not in run:
                raise DeepCacheError(f"expected the same records in all runs; {label(record)} is not in each")
            for text in differences(record, run[k], CONDITIONS).values():
                raise DeepCacheError(f"expected runs under the same conditions; of {label(record)} {text}")
    new = [_slim(_steadied(record, [run[k] for run in identified])) for k, record in identified[0].items()]
    mine = {record.table.name for record in new}
    kept = [record for record in read(path) if record.table.name not in mine] if path.exists() else []
    _write(path, [*kept, *new])
    written = f"written: {path}, {len(new)} records of {', '.join(sorted(mine))}; {len(kept)} of other experiments kept"
    timed = any(record.metrics.keys() & SPEED for record in new)
    hint = f"\ntimes of {len(runs)} of {_STEADY} runs: the median of {_STEADY} results files is steadier"
    return written + hint * (timed and len(runs) < _STEADY)


def _steadied(record: Record, runs: Sequence[Record]) -> Record:
    """Return the record with the median of its ratios over the runs."""
    ratios = {name: [value for run in runs if (value := number(run, name)) is not None] for name in SPEED}
    medians = {name: statistics.median(values) for name, values in ratios.items() if values}
    return replace(record, metrics={**record.metrics, **medians})


def _slim(record: Record) -> Record:
    """Return the record with what is gated alone."""
    return replace(
        record,
        table=Layout(record.table.name),
        test="",
        settings={name: record.settings[name] for name in _SETTINGS if name in record.settings},
        metrics={name: record.metrics[name] for name in _METRICS if name in record.metrics},
        environment={name: record.environment[name] for name in _ENVIRONMENT if name in record.environment},
        per_seed={
            name: [round(value, _DIGITS) for value in record.per_seed[name]]
            for name in FIDELITY
            if name in record.per_seed
        },
        pictures=[],
    )


def _write(path: Path, records: Sequence[Record]) -> None:
    entries = [{name: value for name, value in record.as_dict().items() if value not in ([], "")} for record in records]
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    write_text(path, f'{{"deepcache":[\n{lines}\n]}}\n')

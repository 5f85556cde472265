"""Baselines as files: of each record only what is gated, one a line, so that a committed one stays small."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deepcache.errors import DeepCacheError
from deepcache.files import write_text
from deepcache.results.compare import FIDELITY, SPEED, number
from deepcache.results.conditions import CONDITIONS, METHOD, RUN
from deepcache.results.gate import differences, keyed, label
from deepcache.results.record import COUNTS, Record, read

_SETTINGS = (*METHOD, *RUN, *CONDITIONS, *COUNTS)
_METRICS = (*COUNTS, *SPEED)
_ENVIRONMENT = ("machine", "torch", "diffusers")  # what a changed number may come from
_STEADY = 3  # runs whose median is safe from one slow minute
_DIGITS = 4  # of values a seed, far below the tolerances


def update(path: Path, runs: Sequence[Sequence[Record]]) -> str:
    """Put the experiments of the runs into the baseline at `path`, in place of what it has of them.

    Of several runs the median of each ratio of times is taken, which is steadier than one; all else is the first's.

    Returns:
        What was written, in a sentence.

    Raises:
        DeepCacheError: a record that did not pass, or stands there twice, a run that lacks records of the first or was
            made under other conditions, or a file that cannot be read or written.
    """
    keyed_runs = [keyed(run, "the results") for run in runs]
    for k, record in keyed_runs[0].items():
        for run in keyed_runs:
            if k not in run:
                raise DeepCacheError(f"expected the same records in all runs; {label(record)} is not in each")
            for text in differences(record, run[k], CONDITIONS).values():
                raise DeepCacheError(f"expected runs under the same conditions; of {label(record)} {text}")
    new = [_slim(_steadied(record, [run[k] for run in keyed_runs])) for k, record in keyed_runs[0].items()]
    mine = {record.experiment for record in new}
    kept = [record for record in read(path) if record.experiment not in mine] if path.exists() else []
    _write(path, [*kept, *new])
    written = f"written: {path}, {len(new)} records of {', '.join(sorted(mine))}; {len(kept)} of other experiments kept"
    timed = any(record.metrics.keys() & SPEED for record in new)
    hint = f"\ntimes of {len(runs)} of {_STEADY} runs: the median of {_STEADY} results files is steadier"
    return written + hint * (timed and len(runs) < _STEADY)


def _steadied(record: Record, runs: Sequence[Record]) -> Record:
    """The record with the median of its ratios over the runs."""
    ratios = {name: [value for run in runs if (value := number(run, name)) is not None] for name in SPEED}
    medians = {name: statistics.median(values) for name, values in ratios.items() if values}
    return replace(record, metrics={**record.metrics, **medians})


def _slim(record: Record) -> Record:
    return replace(
        record,
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
    entries = [{name: value for name, value in record.as_dict().items() if value != []} for record in records]
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    write_text(path, f'{{"deepcache":[\n{lines}\n]}}\n')

"""This module plants regressions in the records of an honest run, each with the exit code that the gate must give."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from deepcache.plan import IDLE
from deepcache.results.compare import FIDELITY

Entries = list[dict[str, Any]]
WORSE, OTHERWISE = 1, 2  # exit codes for a regression, and for records that cannot be compared or read
OUTCOMES = ("failed", "error", "skipped", "xfailed", "rerun", "unknown")
OTHER_CONDITIONS = {
    "guidance_scale": 7.5,
    "dtype": "float16",
    "device": "a GPU",
    "extractor": "Inception",
    "weights": "random",
    "num_threads": 64,
    "num_samples": 4,
    "first_seed": 1_000,
}


def planted(honest: Entries) -> Iterator[tuple[str, int, Entries]]:
    """Yield for every regression what was planted, the right exit code, and the records with it, without layouts."""
    for name, code, change in _changes():
        entries = copy.deepcopy([entry for entry in honest if "layout" not in entry])
        changed = change(entries)
        yield name, code, entries if changed is None else changed


def _changes() -> Iterator[tuple[str, int, Callable[[Entries], Entries | None]]]:
    for metric in FIDELITY:
        yield f"one destroyed seed of one row ({metric} is 0)", WORSE, partial(_destroy, metric=metric, most=1)
        yield f"one destroyed seed of each row ({metric})", WORSE, partial(_destroy, metric=metric)
    for outcome in OUTCOMES:
        yield f"a test with the outcome {outcome}", WORSE, partial(_end, outcome=outcome)
    yield "a test without an outcome (null)", OTHERWISE, partial(_end, outcome=None)
    for name, value in OTHER_CONDITIONS.items():
        yield f"{name} is {value}", OTHERWISE, partial(_set, name=name, value=value)
    yield "one experiment is missing", OTHERWISE, lambda e: [r for r in e if r["table"] != "table1"]
    yield "one row is missing", WORSE, lambda e: e[:-1]
    yield "the speedup of one row is missing", OTHERWISE, lambda e: _timed(e)["metrics"].pop("speedup") and None
    yield "the speedup of one row is a text", OTHERWISE, lambda e: _timed(e)["metrics"].update(speedup="fast")
    yield "a shallow step takes a negative share", OTHERWISE, lambda e: _shared(e)["metrics"].update(shallow_share=-0.1)
    yield "the speedup of one row halved", WORSE, lambda e: _timed(e)["metrics"].update(speedup=1.0)
    yield "a full step more in one row", WORSE, lambda e: _timed(e)["metrics"].update(num_full=51)


def _destroy(entries: Entries, metric: str, most: int | None = None) -> None:
    for entry in [entry for entry in entries if metric in entry["per_seed"]][:most]:
        entry["per_seed"][metric][len(entry["per_seed"][metric]) // 2] = 0.0


def _end(entries: Entries, outcome: str | None) -> None:
    entries[0]["outcome"] = outcome


def _set(entries: Entries, name: str, value: object) -> None:
    for entry in entries:
        if name in entry["settings"]:
            entry["settings"][name] = value


def _timed(entries: Entries) -> dict[str, Any]:
    """Return a record with shallow steps; the baseline has no speed of idle ones yet."""
    timed = (entry for entry in entries if entry["metrics"].get("speedup", 0) > 2)
    return next(entry for entry in timed if entry["settings"].get("branch") != IDLE)


def _shared(entries: Entries) -> dict[str, Any]:
    return next(entry for entry in entries if "shallow_share" in entry["metrics"])

"""The command `gate` compares results with a baseline, or makes them the baseline."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError


def add(commands: Any) -> None:
    from deepcache.results.compare import ALLOWANCES, HELP

    command = commands.add_parser(
        "gate",
        help="compare results with a baseline: exit code 1 on a regression, 2 where something cannot be compared",
    )
    command.add_argument("baseline", type=Path, help="the baseline to compare with; --update writes this file")
    command.add_argument("results", type=Path, help="the results file: --benchmark-json FILE, or records.jsonl")
    command.add_argument("reruns", type=Path, nargs="*", help="the same run once more, to confirm what looks slower")
    command.add_argument("--update", action="store_true", help="make the results the baseline (the median of several)")
    command.add_argument("--allow", action="append", default=[], choices=ALLOWANCES, metavar="WHAT", help=HELP)
    command.set_defaults(run=run)


def run(options: Namespace) -> object:
    from deepcache.results import record
    from deepcache.results.baseline import update
    from deepcache.results.gate import gate

    runs = [record.read(path) for path in (options.results, *options.reruns)]
    if options.update:
        if options.allow:
            raise DeepCacheError("expected --allow or --update, got both; an update compares nothing")
        return update(options.baseline, runs)
    if len(runs) > 2:
        raise DeepCacheError(f"expected results and at most one re-run, got {len(runs)} files; --update takes more")
    return gate(record.read(options.baseline), *runs, allow=options.allow)

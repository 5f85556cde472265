"""The commands `tables`, `report` and `gate` make tables, a page and a verdict of a results file."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError
from deepcache.results import write_report, write_tables
from deepcache.results.compare import ALLOWANCES, HELP
from deepcache.results.gate import gate, update
from deepcache.results.record import read

RESULTS = "the results file: --benchmark-json FILE, or records.jsonl"


def add(commands: Any) -> None:
    command = commands.add_parser("tables", help="Markdown, CSV and LaTeX tables from a results file")
    command.add_argument("results", type=Path, help=RESULTS)
    command.add_argument("--out", type=Path, default=Path("tables"), help="folder to write to (default tables)")
    command.set_defaults(run=run_tables)

    command = commands.add_parser("report", help="one HTML page from a results file: tables, plots, pictures")
    command.add_argument("results", type=Path, help=RESULTS)
    command.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default report.html)")
    command.set_defaults(run=run_report)

    text = "compare results with a baseline: exit code 1 on a regression, 2 where something cannot be compared"
    command = commands.add_parser("gate", help=text)
    command.add_argument("baseline", type=Path, help="the baseline to compare with; --update writes this file")
    command.add_argument("results", type=Path, help=RESULTS)
    command.add_argument("reruns", type=Path, nargs="*", help="the same run once more, to confirm what looks slower")
    command.add_argument("--update", action="store_true", help="make the results the baseline (the median of several)")
    command.add_argument("--allow", action="append", default=[], choices=ALLOWANCES, metavar="WHAT", help=HELP)
    command.set_defaults(run=run_gate)


def run_tables(options: Namespace) -> str:
    return write_tables(read(options.results), options.out)


def run_report(options: Namespace) -> str:
    made_by = ["python", "-m", "deepcache", "report", str(options.results), "--out", str(options.out)]
    return write_report(read(options.results), options.out, shlex.join(made_by))


def run_gate(options: Namespace) -> object:
    runs = [read(path) for path in (options.results, *options.reruns)]
    if options.update and options.allow:
        raise DeepCacheError("expected --allow or --update, got both; an update compares nothing")
    if options.update:
        return update(options.baseline, runs)
    if len(runs) > 2:
        raise DeepCacheError(f"expected results and at most one re-run, got {len(runs)} files; --update takes more")
    return gate(read(options.baseline), *runs, allow=options.allow)

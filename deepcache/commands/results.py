"""The commands `tables`, `report` and `gate` make tables, a page and a verdict of a results file."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from deepcache.commands.options import new
from deepcache.errors import DeepCacheError
from deepcache.results import write_report, write_tables
from deepcache.results.compare import ALLOWANCES, HELP
from deepcache.results.gate import gate, update
from deepcache.results.record import read

RESULTS = "the results file: --benchmark-json FILE, or records.jsonl"


def add(commands: Any) -> None:
    text = "Markdown, CSV and LaTeX tables from a results file"
    command = new(commands, "tables", text, "results.json --out tables")
    command.add_argument("results", type=Path, help=RESULTS)
    command.add_argument("--out", type=Path, default=Path("tables"), help="folder to write to (default tables)")
    command.set_defaults(run=run_tables)

    text = "one HTML page from a results file: tables, plots, pictures"
    command = new(commands, "report", text, "results.json --out report.html")
    command.add_argument("results", type=Path, help=RESULTS)
    command.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default report.html)")
    command.set_defaults(run=run_report)

    text = "compare results with a baseline: exit code 1 on a regression, 2 where something cannot be compared"
    update_example = "--update baseline.json run-1.json run-2.json run-3.json"
    command = new(commands, "gate", text, "baseline.json results.json", update_example)
    command.add_argument("baseline", type=Path, help="the baseline to compare with; --update writes this file")
    command.add_argument("results", type=Path, help=RESULTS)
    command.add_argument("reruns", type=Path, nargs="*", help="the same run once more, to confirm what looks slower")
    command.add_argument("--update", action="store_true", help="make the results the baseline (the median of several)")
    command.add_argument("--allow", action="append", default=[], choices=ALLOWANCES, metavar="WHAT", help=HELP)
    command.set_defaults(run=run_gate)


def run_tables(options: Namespace) -> str:
    return write_tables(read(options.results), options.out)


def run_report(options: Namespace) -> str:
    return write_report(read(options.results), options.out, options.made_by)


def run_gate(options: Namespace) -> object:
    runs = [read(path) for path in (options.results, *options.reruns)]
    if options.update and options.allow:
        raise DeepCacheError("expected --allow or --update, got both; an update compares nothing")
    if options.update:
        return update(options.baseline, runs)
    if len(runs) > 2:
        raise DeepCacheError(f"expected results and at most one re-run, got {len(runs)} files; --update takes more")
    return gate(read(options.baseline), *runs, allow=options.allow)

"""The command `report` writes one HTML page from a results file."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

from deepcache.errors import needs


def add(commands: Any) -> None:
    command = commands.add_parser("report", help="one HTML page from a results file: tables, plots, pictures")
    command.add_argument("results", type=Path, help="the results file: --benchmark-json FILE, or records.jsonl")
    command.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default report.html)")
    command.set_defaults(run=run)


def run(options: Namespace) -> str:
    from deepcache.results import record

    made_by = ["python", "-m", "deepcache", "report", str(options.results), "--out", str(options.out)]
    with needs("a report", "bench"):
        from deepcache.results import report

        return f"written: {report.write(record.read(options.results), options.out, shlex.join(made_by))}"

"""`report`: one HTML page from a results file."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError


def add(commands: Any) -> None:
    command = commands.add_parser("report", help="one HTML page from a results file: tables, plots, pictures")
    command.add_argument("results", type=Path, help="what pytest wrote: --benchmark-json FILE, or records.jsonl")
    command.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default report.html)")
    command.set_defaults(run=run)


def run(options: Namespace) -> str:
    from deepcache.results import record

    try:
        from deepcache.results import report
    except ImportError as error:
        raise DeepCacheError(f"a report needs more packages ({error}); pip install 'deepcache-bench[bench]'") from error
    made_by = ["python", "-m", "deepcache", "report", str(options.results), "--out", str(options.out)]
    return f"written: {report.write(record.read(options.results), options.out, shlex.join(made_by))}"

"""The command `tables` writes Markdown, CSV and LaTeX from a results file."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from deepcache.errors import needs


def add(commands: Any) -> None:
    command = commands.add_parser("tables", help="Markdown, CSV and LaTeX tables from a results file")
    command.add_argument("results", type=Path, help="the results file: --benchmark-json FILE, or records.jsonl")
    command.add_argument("--out", type=Path, default=Path("tables"), help="folder to write to (default tables)")
    command.set_defaults(run=run)


def run(options: Namespace) -> str:
    from deepcache.results import record

    with needs("a table", "bench"):
        from deepcache.results import tables

        written = tables.render(record.read(options.results), options.out)
    shown = [path.read_text(encoding="utf-8") for path in written if path.suffix == ".md" and path.stem != "all"]
    return "\n".join([*shown, "written: " + ", ".join(str(path) for path in written)])

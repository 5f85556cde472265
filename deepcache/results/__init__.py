"""Records, their tables, figures and reports, the gate, and the pytest plugin that makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepcache.errors import needs
from deepcache.files import write_text
from deepcache.results.record import Record


def write_tables(records: Sequence[Record], folder: Path) -> str:
    """Write the tables of these records, and return them as Markdown with a line that names the files."""
    with needs("a table", "bench"):
        from deepcache.results.tables import render

        written = render(records, folder)
    shown = [path.read_text(encoding="utf-8") for path in written if path.suffix == ".md" and path.stem != "all"]
    return "\n".join([*shown, "written: " + ", ".join(map(str, written))])


def write_report(records: Sequence[Record], file: Path, made_by: str) -> str:
    """Write the report of these records, made by this command, and return a line that names the file."""
    with needs("a report", "bench"):
        from deepcache.results.report import page

        return f"written: {write_text(file, page(records, made_by))}"

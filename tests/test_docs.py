"""Tables that the documentation quotes are those of the committed results, cell by cell (a stored value)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = sorted((ROOT / "bench" / "results").glob("*/*.md"))
Table = tuple[list[str], dict[str, list[str]]]


def tables(path: Path) -> Iterator[Table]:
    """Every Markdown table of a page: its columns' titles, and the cells by the name at the beginning of the row."""
    for is_table, lines in groupby(path.read_text().splitlines(), lambda line: line.startswith("|")):
        if is_table:
            (_, *titles), _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
            yield titles, {name: cells for name, *cells in rows if name}


def differences(quoted: Table, committed: Table) -> list[str]:
    """Cells of the quoted table that the committed one has otherwise; none if they are not of the same columns."""
    (titles, rows), (own_titles, own_rows) = quoted, committed
    if not set(titles) <= set(own_titles):
        return []
    return [
        f"{name}, {title}: {cell} instead of {own}"
        for name, cells in rows.items()
        if name in own_rows
        for title, cell in zip(titles, cells, strict=True)
        if cell != (own := own_rows[name][own_titles.index(title)])
    ]


COMMITTED = [table for path in RESULTS for table in tables(path)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_quoted_table_is_the_committed_one(page):
    assert [text for quoted in tables(page) for committed in COMMITTED for text in differences(quoted, committed)] == []


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md", "docs/prediction.md"])
def test_pages_that_quote_are_compared(name):
    quoted = [titles for titles, _ in tables(ROOT / name)]
    assert any(set(titles) <= set(own) for titles in quoted for own, _ in COMMITTED)


def test_a_quoted_cell_that_differs_is_found():
    committed = (["source", "speedup", "FID"], {"uncached": ["mini", "1.00", "2.24"], "N=2": ["mini", "1.80", "2.20"]})
    assert differences((["FID", "speedup"], {"N=2": ["2.20", "1.80"], "other": ["0", "0"]}), committed) == []
    assert differences((["FID", "speedup"], {"N=2": ["2.20", "1.86"]}), committed) == [
        "N=2, speedup: 1.86 instead of 1.80"
    ]
    assert differences((["steps"], {"N=2": ["7"]}), committed) == []

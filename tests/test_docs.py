"""Tables that the documentation quotes are those of the committed results, cell by cell (a stored value)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from bench.pareto.equal_cost import (
    GUIDANCE,
    INTERVALS,
    OF_KINDS,
    SHARES,
    SHOWN,
    at_any_cost,
    at_equal_cost,
    by_kind,
    nearer,
    panels,
)

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


@pytest.mark.parametrize(("name", "count"), [("README.md", 1), ("docs/performance.md", 2), ("docs/prediction.md", 1)])
def test_pages_that_quote_are_compared(name, count):
    """A title that is renamed would silence its table."""
    quoted = [titles for titles, _ in tables(ROOT / name)]
    assert sum(any(set(titles) <= set(own) for own, _ in COMMITTED) for titles in quoted) == count


def test_tables_of_the_pareto_bench_are_those_of_its_records():
    found = panels(ROOT / "bench" / "results" / "pareto" / "records.jsonl")
    readme, plans = (list(tables(ROOT / name)) for name in ("README.md", "docs/plans.md"))
    measured = [at_equal_cost(name, found[name], interval) for name in SHOWN.items() for interval in INTERVALS]
    assert _rows(plans, "chosen") == {method: cells for method, *cells in (map(str, row.values()) for row in measured)}
    ordinary = [points for points in found.values() if GUIDANCE not in points[0].record.key]
    costs = {name: cells for name, *cells in (map(str, row.values()) for row in at_any_cost(ordinary))}
    assert _rows(plans, "15 %").items() <= costs.items()
    of_kinds = [name for name in found if name[1].split(",")[0] in OF_KINDS]
    kinds = [by_kind(name, found[name], share) for name in of_kinds for share in SHARES]
    lines = (ROOT / "docs" / "plans.md").read_text().splitlines()
    assert all(f"| {' | '.join(map(str, row.values()))} |" in lines for row in kinds)
    titles, shown = next((titles, rows) for titles, rows in readme if "predicted shallow" in titles)
    by_name = {f"{row['model, solver']}, {row['MACs at most (%)']} %": row for row in kinds}
    assert len(shown) > 5
    for name, cells in shown.items():
        assert cells == [by_name[name][title] for title in titles]
    text = (ROOT / "docs" / "plans.md").read_text()
    readme_text = " ".join((ROOT / "README.md").read_text().split())
    counts = [nearer(ordinary, interval) for interval in INTERVALS]
    for each in zip(*counts, strict=True):
        assert "{}, {} and {}".format(*each) in text
        assert "{}, {} and {}".format(*each) in readme_text


def _rows(page, title):
    """The rows of the table with a column of that title."""
    return next(rows for titles, rows in page if title in titles)


def test_a_quoted_cell_that_differs_is_found():
    committed = (["source", "speedup", "FID"], {"uncached": ["mini", "1.00", "2.24"], "N=2": ["mini", "1.80", "2.20"]})
    assert differences((["FID", "speedup"], {"N=2": ["2.20", "1.80"], "other": ["0", "0"]}), committed) == []
    assert differences((["FID", "speedup"], {"N=2": ["2.20", "1.86"]}), committed) == [
        "N=2, speedup: 1.86 instead of 1.80"
    ]
    assert differences((["steps"], {"N=2": ["7"]}), committed) == []


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1200
    assert max(map(len, text.splitlines())) <= 100
    assert all(len(rows) <= 8 for _, rows in tables(ROOT / "README.md"))

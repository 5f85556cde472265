"""Tables that the documentation quotes are those of the committed results, cell by cell (a stored value)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from bench.pareto.equal_cost import INTERVALS, SHOWN, at_any_cost, at_equal_cost, nearer, panels

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
    whole = {method: dict(zip(titles, cells, strict=True)) for (_, *titles), (method, *cells) in map(_parts, measured)}
    shown_titles, equal = next((titles, rows) for titles, rows in readme if "chosen" in titles)
    assert len(equal) > 5
    for method, cells in equal.items():
        assert dict(zip(shown_titles, cells, strict=True)).items() <= whole[method].items()
    costs = next(rows for titles, rows in plans if titles[0] == "25 %")
    assert costs == {row.pop("share of the uncached MACs"): [*map(str, row.values())] for row in _any_cost(found)}
    text = (ROOT / "docs" / "plans.md").read_text()
    readme_text = " ".join((ROOT / "README.md").read_text().split())
    counts = [nearer([*found.values()], interval) for interval in INTERVALS]
    for each in zip(*counts, strict=True):
        assert "{}, {} and {}".format(*each) in text
        assert "{}, {} and {}".format(*each) in readme_text


def _parts(row):
    return row.keys(), row.values()


def _any_cost(found):
    return at_any_cost([*found.values()])


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

"""Names, prompts and settings are data in every format; a parser of each format that is not ours is the oracle."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcache.errors import DeepCacheError
from deepcache.results import report, tables
from deepcache.results.record import Record, read
from deepcache.results.text import csv_cell, markdown, plain
from tests.examples import TABLE1, entries

NASTY = (
    "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", "a\n\\input{/etc/passwd}", "a\r\\input{x}", "a|b",
    "a\\|b",
    "<script>alert(1)</script>", "&lt;b&gt;", "\ud800", "a\udcffb", "\x00", "\x1b[31m", "\u2028\\input{x}", "\x85x",
    "$x$ %c ^^M _a_ {b} ~ # & \\",
    "[link](javascript:x)", "*b* `c` ~~d~~", "[0pt]", "*", "\ufffe", '"q" \'q\'', "é日本😀",
    " ",
    "a\n\n# head\n- item", "_under", "</table></html>", "font: 3px x #010203",
)  # fmt: skip
TEXTS = st.sampled_from(NASTY) | st.text(st.characters(categories=None), max_size=12)


def records(names: list[str]) -> list[Record]:
    return [
        Record(
            TABLE1,
            {"method": name},
            {"model": name, "weights": name, "scheduler": name, "interval": 3, "extractor": name},
            {"macs": 5e8, "speedup": 2.0 + i, "fid": -1.5, "psnr_median_db": 30.0 + i},
            {"torch": "0"},
            "passed",
            label=name,
        )
        for i, name in enumerate(names)
    ]


def built(names: list[str]):
    table = TABLE1.displayed()
    shown = [record.displayed(table) for record in records(names)]
    return shown, tables.build(TABLE1, shown), tables.notes(TABLE1, shown)


@given(st.lists(TEXTS, min_size=1, max_size=4, unique_by=plain))
@settings(max_examples=25, deadline=None)
def test_cells_of_csv_come_back_whole_and_none_is_a_formula(names):
    """Oracle: the csv module."""
    shown, table, _ = built(names)
    for text in (tables.to_csv(table), tables.to_csv(tables.overview(shown))):
        assert text.encode()
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        assert len(lines) == 1 + len(names)
        assert {len(line) for line in lines} == {len(lines[0])}
        row = lines[0].index("method" if "method" in lines[0] else "row")
        for line, name in zip(lines[1:], names, strict=True):
            assert line[row].removeprefix("'") == (plain(name) or "table1").removeprefix("'")
            assert float(line[lines[0].index("fid")]) == -1.5
            texts = [cell for cell in line if re.fullmatch(r"-?[\d.]+", cell) is None]
            assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d")) for cell in texts)


@given(TEXTS, st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_a_number_in_csv_stays_one(name, value):
    assert csv_cell(value) is value
    assert str(csv_cell(plain(name))).removeprefix("'") == plain(name).removeprefix("'")


def cells_of(line: str) -> list[str]:
    """A row of a table as GitHub's Markdown splits it: at bars that no backslash precedes, whatever stands around."""
    return [cell.strip() for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line.strip())][1:-1]


def as_read(text: str) -> str:
    """What a reader of Markdown sees: backslashes before punctuation fall, and entities are characters."""
    unescaped = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)
    return unescaped.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


@given(st.lists(TEXTS, min_size=1, max_size=4, unique_by=plain))
@settings(max_examples=25, deadline=None)
def test_a_markdown_table_has_its_rows_and_columns_and_no_html(names):
    """Oracle: a split of rows by GitHub's rule, and the standard library's parser of HTML."""
    shown, table, notes = built(names)
    for text in (tables.to_markdown(TABLE1, table, notes), tables.overview_markdown(tables.overview(shown))):
        assert text.encode()
        lines = text.split("\n")
        rows = [cells_of(line) for line in lines if line.startswith("|")]
        assert len(rows) == 2 + len(names)
        assert {len(row) for row in rows} == {len(rows[0])}
        assert all(line[:2] in ("", "| ", "|:", "- ", "##") for line in lines)
        parser = Tags()
        parser.feed(text)
        assert not parser.tags
        parser.close()


@given(TEXTS)
def test_a_text_in_markdown_is_read_as_it_is(name):
    shown = markdown(plain(name))
    assert as_read(shown) == plain(name)
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*\[\]~$<]", shown.replace("\\\\", ""))


COMMANDS = {
    "\\begin", "\\end", "\\toprule", "\\midrule", "\\bottomrule", "\\\\", "\\%", "\\$", "\\#", "\\_", "\\{", "\\}",
    "\\&",
    "\\textbackslash", "\\ensuremath", "\\^", "\\~", "\\textasciitilde", "\\textasciicircum",
}  # fmt: skip


@given(st.lists(TEXTS, min_size=1, max_size=4, unique_by=plain))
@settings(max_examples=25, deadline=None)
def test_latex_has_no_command_but_the_tables_own_and_its_comments_stay_lines(names):
    """Oracle: TeX's rules of lines and control sequences."""
    _, table, notes = built(names)
    text = tables.to_latex(TABLE1, table, notes)
    assert text.encode()
    head, body = text.split("\\begin{tabular}")
    assert all(line == "" or line.startswith("%") for line in head.splitlines())
    found = set(re.findall(r"\\(?:[A-Za-z]+|.)", "\\begin{tabular}" + body, flags=re.DOTALL))
    assert found <= COMMANDS
    rows = [line for line in body.split("\n") if line.endswith(r"\\")]
    assert len(rows) == 1 + len(names)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(TABLE1.columns) + 1}
    assert not any(row.lstrip().startswith(("[", "*")) for row in rows)
    assert not any(re.search(r"(?<!\\)[%$#_~]", row) for row in rows)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.texts += [value for _, value in attrs if value]

    def handle_data(self, data):
        self.texts.append(data)


@given(TEXTS)
@settings(max_examples=3, deadline=None)
def test_a_page_has_the_same_elements_whatever_the_names_and_shows_them(name):
    """Oracle: the standard library's parser of HTML."""
    pages = []
    for names in (["harmless", "other"], [name, "other"]):
        parser = Tags()
        text = report.page(records(names))
        assert text.encode()
        parser.feed(text)
        pages.append(parser)
    skipped = {"span"}  # that an empty fact has not
    assert [tag for tag in pages[0].tags if tag not in skipped] == [tag for tag in pages[1].tags if tag not in skipped]
    assert any(plain(name).strip() in text for text in pages[1].texts)


@pytest.mark.parametrize("name", NASTY)
def test_records_of_any_name_are_rendered_and_read_back(tmp_path, name):
    written = tables.render(records([name]), tmp_path)
    assert {path.name for path in written} >= {"table1.md", "table1.csv", "table1.tex", "all.csv", "all.md"}
    assert report.page(records([name])).encode()
    (tmp_path / "records.jsonl").write_text(json.dumps(entries(records([name]))))
    assert plain(read(tmp_path / "records.jsonl")[0].label) == plain(name)


def test_a_text_is_plain_on_one_line_of_utf8():
    assert plain("a\nb\tc\x00d\ud800\u2028\ufffe") == r"a\nb\tc\x00d\ud800\u2028\ufffe"
    assert plain("é 日本 😀 \u200d") == "é 日本 😀 \u200d"


def test_a_file_with_half_a_character_is_one_clear_line(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"deepcache": [{**records(["a"])[0].as_dict(), "label": "\ud800"}]}))
    with pytest.raises(DeepCacheError, match="half a character"):
        read(path)

"""The HTML report: complete, escaped, self-contained; written by the command line and by the plugin."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from deepcache.__main__ import main
from deepcache.errors import DeepCacheError
from deepcache.results import figures, report
from deepcache.results.figures import picture
from deepcache.results.layout import Column, Layout, Published
from deepcache.results.record import Record, read
from tests.examples import RECORDS, SETTINGS, TABLE1, entries, table1_record
from tests.results.test_figures import speed

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "bench" / "records.jsonl"
HOSTILE = "<script>alert(1)</script> $x^{ & \"quoted\" 'n'"


class _Page(HTMLParser):
    """Tags with their attributes, and the cells' texts of the tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def attributes(self, tag: str, name: str) -> list[str]:
        return [value for found, attrs in self.tags if found == tag and (value := attrs.get(name)) is not None]


@pytest.mark.parametrize("name", ["table1", "prediction"])
def test_every_measured_value_is_in_the_page(name):
    records = [record for record in read(RESULTS) if record.table.name == name]
    page = _Page(report.page(records))
    exact = set(page.attributes("data", "value")) | set(page.texts)
    for record in records:
        assert record.label in exact
        assert {str(value) for value in record.metrics.values()} <= exact


def test_measured_published_and_difference_stand_in_one_group():
    text = report.page([table1_record("uniform", 3, speedup=2.4)])
    lines = re.findall(r'<tr class="(\w+)">', text)
    assert lines == ["measured", "published", "difference"]
    assert text.count("<tbody>") == 2  # and that of everything recorded
    assert {"2.40", "2.65", "-0.25", "-"} <= set(_Page(text).texts)


def test_a_table_says_what_to_look_at():
    record = table1_record("uncached", speedup=1.0)
    looked = replace(record, table=replace(record.table, look="Look at <FID>."))
    assert '<p class="hint">Look at &lt;FID&gt;.</p>' in report.page([looked])
    assert 'class="hint"' not in report.page([record])


def test_a_failed_row_is_marked_and_others_are_not():
    texts = _Page(report.page(RECORDS)).texts
    assert texts.count("1 did not pass") == 1
    assert texts.count("failed") == 2  # the badge, and everything recorded
    assert "all passed" in report.page(RECORDS[:2])


def test_hostile_names_are_text():
    entry = {**picture(HOSTILE, HOSTILE, Image.new("RGB", (2, 2)))}
    settings = {**SETTINGS, "model": HOSTILE, "curve": HOSTILE}
    metrics = {"speedup": 2.0, "psnr_median_db": 30.0, HOSTILE: HOSTILE}
    key = {"method": HOSTILE}
    hostile = Record(TABLE1, key, settings, metrics, {HOSTILE: HOSTILE}, "passed", {HOSTILE: [1.0]}, [entry])
    table = Layout("other", HOSTILE, (Column(HOSTILE, HOSTILE, 1, HOSTILE),), (Published(key, {HOSTILE: 1}, HOSTILE),))
    unknown = Record(table, key, settings, metrics, {}, "failed", label=HOSTILE, test=HOSTILE)
    text = report.page([hostile, speed(HOSTILE, "other", 3.0, 20.0), unknown], made_by=HOSTILE)
    assert "<script>alert" not in text
    assert [tag for tag, _ in _Page(text).tags].count("script") == 1
    assert HOSTILE in _Page(text).texts
    assert HOSTILE in _Page(text).attributes("img", "alt")


def test_pictures_have_their_text_and_foreign_data_is_refused():
    entry = picture("figure7", "A grid.", Image.new("RGB", (4, 4)))
    record = Record(Layout("figure7"), {"interval": 2}, dict(SETTINGS), {"macs": 1e7}, {}, "passed", {}, [entry])
    page = _Page(report.page([record]))
    assert page.attributes("img", "alt") == ["A grid."]
    assert page.attributes("img", "src") == [entry["data"]]
    entry["data"] = "https://example.org/track.png"
    with pytest.raises(DeepCacheError, match=r"expected a PNG as a data URI in picture 'figure7' of row 'interval 2'"):
        report.page([record])


def test_the_page_refers_to_nothing_but_itself_and_ids_are_unique():
    text = report.page(read(RESULTS))
    page = _Page(text)
    references = [*page.attributes("a", "href"), *page.attributes("use", "href"), *page.attributes("img", "src")]
    assert all(reference.startswith(("#", "data:image/png")) for reference in references)
    assert "http" not in re.sub(r'http-equiv="', "", text)
    ids = [value for _, attrs in page.tags if (value := attrs.get("id"))]
    assert len(ids) == len(set(ids))
    assert {reference[1:] for reference in references if reference.startswith("#")} <= set(ids)
    assert {name for labels in page.attributes("section", "aria-labelledby") for name in labels.split()} <= set(ids)


def test_the_style_sheet_has_the_plots_palette_in_both_schemes():
    text = report.page(RECORDS)
    for i in range(figures.NUM_COLOURS):
        assert text.count(f"--curve-{i}: #") == 2


def test_the_command_writes_what_the_library_does(capsys, tmp_path):
    results, out = tmp_path / "results.json", tmp_path / "new" / "report.html"
    results.write_text(json.dumps({"deepcache": entries(RECORDS)}))
    assert main(["report", str(results), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"written: {out}\n"
    command = f"python -m deepcache report {results} --out {out}"
    assert out.read_text() == report.page(RECORDS, command)
    assert main(["report", str(results), "--out", str(results / "below")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_an_experiment_says_how_to_run_it_again():
    record = replace(RECORDS[0], test="bench/test it.py")
    texts = _Page(report.page([record, RECORDS[1]])).texts
    assert texts[texts.index("Run it again") + 1].startswith("pytest 'bench/test it.py' --benchmark-json")
    assert "Run it again" not in _Page(report.page(RECORDS)).texts


def test_no_records_are_refused():
    with pytest.raises(DeepCacheError, match="expected records for a report, got none"):
        report.page([])


BENCH = """
    from deepcache.results.layout import Column, Layout

    TABLE = Layout("table1", "Table 1", (Column("fid", "FID", 2),))

    def test_row(record, benchmark):
        benchmark(lambda: None)
        record(table=TABLE, key={"method": "uniform", "interval": 2}, settings={"model": "mini-ldm"},
               metrics={"fid": 1.5}, pictures=PICTURES)
"""


def test_the_plugin_writes_the_report_with_its_command(pytester):
    pytester.makepyfile(BENCH.replace("PICTURES", "[]"))
    result = pytester.runpytest_inprocess("--paper-report", "new/report.html")
    result.stdout.fnmatch_lines(["*deepcache report*", "written: *report.html"])
    text = (pytester.path / "new/report.html").read_text()
    assert "--paper-report new/report.html" in text
    assert "uniform, interval 2" in text


def test_a_report_that_cannot_be_made_loses_no_results(pytester, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    pytester.makepyfile(BENCH.replace("PICTURES", '[{"name": "a", "alt": "", "data": "ftp://a"}]'))
    result = pytester.runpytest_inprocess("--paper-report", "report.html", "--benchmark-json", "results.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["--paper-report: expected a PNG as a data URI*"])
    assert [record.label for record in read(pytester.path / "results.json")] == ["uniform, interval 2"]
    assert not (pytester.path / "report.html").exists()


def test_missing_packages_are_one_line(pytester):
    pytester.makepyfile(BENCH.replace("PICTURES", "[]"))
    pytester.makeconftest("import sys; sys.modules['pandas'] = None")
    result = pytester.runpytest_subprocess("--paper-report", "report.html")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["--paper-report: a report needs the package pandas, *; pip install 'deepcache-bench[[]bench[]]'"]
    )


@pytest.mark.parametrize("option", ["--paper-report", "--benchmark-json"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(pytester, option):
    pytester.makepyfile(BENCH.replace("PICTURES", "[]"))
    result = pytester.runpytest_inprocess(option, ".")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*expected a file to write*is a folder*"])

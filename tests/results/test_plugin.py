"""The pytest plugin, end to end in runs of its own."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

import deepcache.results.tables  # noqa: F401  (pytester forgets the modules that a run of its own imports first)
from deepcache.__main__ import main
from deepcache.results import plugin
from deepcache.results.layout import Layout
from deepcache.results.record import Record, layout_entry, read

TABLE = """
    from deepcache.results.layout import Column, Layout

    COLUMNS = (Column("macs", "MACs (G)", 4, scale=1e9), Column("fid", "FID", 2))
    TABLE = Layout("table1", "Table 1: all methods", COLUMNS)
"""
BENCH = (
    TABLE
    + """
    import os, signal, pytest

    def measured(record, row):
        metrics = {"macs": 69158096, "fid": 1.5}
        record(table=TABLE, key={"method": row}, settings={"model": "mini-ldm"}, metrics=metrics)

    def test_uncached(record, benchmark):
        benchmark(lambda: None)
        measured(record, "uncached")

    def test_uniform(record):
        measured(record, "uniform N=2")
        assert FAILS

    def test_last(record):
        if KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        measured(record, "uniform N=3")
"""
)


@pytest.fixture
def bench(pytester):
    def make(*, fails: bool = False, killed: bool = False) -> None:
        pytester.makepyfile(BENCH.replace("FAILS", str(not fails)).replace("KILLED", str(killed)))

    return make


def test_records_are_written_and_rendered(pytester, bench):
    bench()
    result = pytester.runpytest_inprocess("--paper-tables", "out")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        ["*deepcache tables*", "### Table 1*", "*uniform N=2*mini-ldm*", "written: *table1.md*"]
    )
    assert [r.label for r in read(pytester.path / "out/records.jsonl")] == ["uncached", "uniform N=2", "uniform N=3"]
    assert {p.name for p in (pytester.path / "out").iterdir()} == {
        "all.csv",
        "all.md",
        "records.jsonl", "table1.md", "table1.csv", "table1.tex"
    }  # fmt: skip


def test_a_failed_test_keeps_its_record_and_says_so(pytester, bench):
    bench(fails=True)
    pytester.runpytest_inprocess("--paper-tables", "out").assert_outcomes(passed=2, failed=1)
    assert [r.outcome for r in read(pytester.path / "out/records.jsonl")] == ["passed", "failed", "passed"]
    assert "uniform N=2 (failed)" in (pytester.path / "out/table1.md").read_text()


def test_records_stand_in_pytest_benchmarks_json(pytester, bench, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # by which pytest-benchmark disables itself
    bench()
    pytester.runpytest_inprocess("--benchmark-json", "results.json").assert_outcomes(passed=3)
    assert [r.label for r in read(pytester.path / "results.json")] == ["uncached", "uniform N=2", "uniform N=3"]
    assert len(json.loads((pytester.path / "results.json").read_text())["benchmarks"]) == 1


@pytest.mark.parametrize("options", [("-k", "uniform or last"), ("-n", "1")], ids=["untimed", "xdist"])
def test_results_of_an_older_run_do_not_pass_for_those_of_one_that_timed_nothing(pytester, bench, monkeypatch, options):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # by which pytest-benchmark disables itself
    bench()
    old = Record(Layout("table1"), {"method": "of an older run"}, {}, {}).as_dict()
    (pytester.path / "results.json").write_text(json.dumps({"benchmarks": [{"name": "old"}], "deepcache": [old]}))
    result = pytester.runpytest_inprocess("--benchmark-json", "results.json", *options)
    assert result.ret == 0
    rows = ["uncached"] * ("-n" in options) + ["uniform N=2", "uniform N=3"]
    assert [r.label for r in read(pytester.path / "results.json")] == rows
    assert json.loads((pytester.path / "results.json").read_text())["benchmarks"] == []
    again = pytester.runpytest_inprocess("--benchmark-compare", "results.json", "-k", "uniform")
    assert again.ret == 0


def test_finished_rows_survive_a_kill_and_render(pytester, bench):
    bench(killed=True)
    result = pytester.runpytest_subprocess("--paper-tables", "out")
    assert result.ret == -9
    assert main(["tables", str(pytester.path / "out/records.jsonl"), "--out", str(pytester.path / "later")]) == 0
    assert [r.label for r in read(pytester.path / "out/records.jsonl")] == ["uncached", "uniform N=2"]
    assert "uniform N=2" in (pytester.path / "later/table1.md").read_text()


@pytest.mark.parametrize("options", [(), ("-n", "1", "-p", "no:benchmark")], ids=["one process", "xdist"])
def test_a_test_that_is_run_again_leaves_one_record_its_last(pytester, options):
    """By pytest-rerunfailures; the first two attempts fail, after they recorded."""
    pytester.makepyfile(
        TABLE
        + """
    from pathlib import Path

    def test_before(record):
        record(table=TABLE, key={"row": "before"}, settings={}, metrics={})

    def test_it(record):
        attempts = Path("attempts")
        number = len(attempts.read_text()) + 1 if attempts.exists() else 1
        attempts.write_text("x" * number)
        for row in ("one", "two"):
            record(table=TABLE, key={"row": row}, settings={}, metrics={"macs": number})
        assert number == 3
        """
    )
    result = pytester.runpytest_inprocess("--reruns", "2", "--paper-tables", "out", *options)
    assert result.ret == 0
    found = {(r.label, r.metrics.get("macs"), r.outcome) for r in read(pytester.path / "out/records.jsonl")}
    assert found == {("before", None, "passed"), ("one", 3, "passed"), ("two", 3, "passed")}
    assert len(read(pytester.path / "out/records.jsonl")) == 3


def test_records_of_xdists_workers_come_together(pytester, bench):
    bench()
    pytester.runpytest_inprocess("-n", "2", "--paper-tables", "out", "-p", "no:benchmark").assert_outcomes(
        passed=2, errors=1
    )
    assert sorted(r.label for r in read(pytester.path / "out/records.jsonl")) == ["uniform N=2", "uniform N=3"]


def test_a_new_run_begins_a_new_file_and_one_without_records_leaves_the_old(pytester, bench):
    bench()
    for _ in range(2):
        pytester.runpytest_inprocess("--paper-tables", "out", "-k", "uniform")
    pytester.runpytest_inprocess("--paper-tables", "out", "-k", "nothing")
    assert len(read(pytester.path / "out/records.jsonl")) == 1


@pytest.mark.parametrize(("folder", "most"), [(None, 0), ("out", 1)])
def test_a_record_is_kept_without_a_look_at_all_earlier_records(tmp_path, monkeypatch, folder, most):
    """Else a session of n tests would take n^2 steps."""
    looks = []
    monkeypatch.setattr(plugin.Collector, "entries", property(lambda _: looks.append(1) or []))
    options = {"--paper-tables": folder and tmp_path / folder}
    params = SimpleNamespace(dir=tmp_path, args=())
    collector = plugin.Collector(SimpleNamespace(getoption=lambda name, _: options.get(name), invocation_params=params))
    for place in range(5):
        entries = [place, layout_entry(Layout("table1")), Record(Layout("table1"), {"row": place}, {}, {}).as_dict()]
        properties = [(plugin.PROPERTY, entries)]
        report = SimpleNamespace(when="call", outcome="passed", nodeid=str(place), user_properties=properties)
        collector.pytest_runtest_logreport(report)
    assert len(looks) == most
    if folder:
        assert len((tmp_path / folder / plugin.RECORDS).read_text().splitlines()) == 4  # after the first look


def test_two_tables_of_one_name_are_refused(pytester):
    pytester.makepyfile(
        TABLE
        + """
    def test_first(record):
        record(table=TABLE, key={"row": 1}, settings={}, metrics={})

    def test_second(record):
        record(table=Layout("table1"), key={"row": 2}, settings={}, metrics={})
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*expected one table of the name 'table1', got two; rename one of them*"])


EXPERIMENT = """
    import pytest

    from deepcache.results.layout import Column, Layout, Plot, Published

    TABLE = Layout(
        "naps",
        title="How long a cat sleeps",
        columns=(Column("hours", "hours", 1, "hours", same=("cat",)), Column("speedup", "speedup", 2)),
        published=(Published({"place": "sofa"}, {"hours": 16.0}, "The Cat (1990)", {"cat": "tabby"}),),
        plot=Plot("speedup", "hours", "speedup", "hours", by="cat"),
    )

    @pytest.mark.parametrize("place", ["sofa", "floor"])
    def test_naps(record, place):
        metrics = {"hours": 15.5 if place == "sofa" else 3.0, "num_full": 7, "speedup": 2.0}
        record(table=TABLE, key={"place": place}, settings={"cat": "tabby"}, metrics=metrics,
               per_seed={"psnr_db": [30.0, 31.0]})
"""


def test_a_new_experiment_of_another_project_is_one_file(pytester):
    """It ends as a table beside published numbers, in the report, in the gate, and in files that need no import."""
    pytester.makepyfile(test_naps=EXPERIMENT)
    asked = ("--paper-tables", "tables", "--paper-report", "report.html")
    result = pytester.runpytest_inprocess(*asked)
    result.assert_outcomes(passed=2)
    table = (pytester.path / "tables/naps.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[0:1] == "|"]
    assert [row[:3] for row in rows[2:]] == [
        ["sofa", "None ()", "15.5"],
        ["", "paper ()", "16.0"],
        ["", "difference", "-0.5"],
        ["floor", "None ()", "3.0"],
    ]
    assert "- paper: The Cat (1990)" in table
    report = (pytester.path / "report.html").read_text()
    assert all(
        text in report for text in ("How long a cat sleeps", "paper ()", "pytest test_naps.py --benchmark-json", "<svg")
    )
    records, base, later = "tables/records.jsonl", str(pytester.path / "base.json"), str(pytester.path / "later")
    (pytester.path / "test_naps.py").unlink()
    assert main(["tables", str(pytester.path / records), "--out", later]) == 0
    assert (pytester.path / "later/naps.md").read_text() == table
    assert main(["report", str(pytester.path / records), "--out", f"{later}.html"]) == 0
    assert main(["gate", base, str(pytester.path / records), "--update"]) == 0
    pytester.makepyfile(test_naps=EXPERIMENT)
    good = pytester.runpytest_inprocess("--paper-gate", "base.json")
    good.stdout.fnmatch_lines(["gate: 2 records compared, 0 regressions"])
    assert good.ret == 0
    pytester.makepyfile(test_naps=EXPERIMENT.replace('"num_full": 7', '"num_full": 8'))
    worse = pytester.runpytest_inprocess("--paper-gate", "base.json")
    worse.stdout.fnmatch_lines(["regression: naps / sofa: num_full: 7 -> 8; update the baseline if intended"])
    assert worse.ret == 1


def test_the_plugin_does_nothing_unless_asked(pytester, bench):
    bench()
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=3)
    result.stdout.no_fnmatch_line("*deepcache tables*")
    assert {p.suffix for p in pytester.path.iterdir() if p.is_file()} <= {".py"}


def test_the_plugin_imports_nothing_slow_and_tables_no_torch(pytester):
    slow = "{'torch', 'numpy', 'pandas', 'pydantic', 'matplotlib'}"
    code = f"""
import sys, deepcache.results.plugin
assert not {slow} & set(sys.modules)
import deepcache.results.tables
assert not {{'torch', 'matplotlib'}} & set(sys.modules)"""
    assert pytester.run(sys.executable, "-c", code).ret == 0

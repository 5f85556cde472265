"""The pytest plugin, end to end in runs of its own."""

from __future__ import annotations

import json
import sys

import pytest

import deepcache.results.tables  # noqa: F401  (pytester forgets the modules that a run of its own imports first)
from deepcache.results.record import Record, read

BENCH = """
    import os, signal, pytest

    def measured(record, row):
        record(experiment="table1", row=row, settings={"model": "mini-ldm"}, metrics={"macs": 69158096, "fid": 1.5})

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


@pytest.fixture
def bench(pytester):
    def make(*, fails: bool = False, killed: bool = False) -> None:
        pytester.makepyfile(BENCH.replace("FAILS", str(not fails)).replace("KILLED", str(killed)))

    return make


def test_records_are_written_and_rendered(pytester, bench):
    bench()
    result = pytester.runpytest_inprocess("--tables", "out")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        ["*deepcache tables*", "### Table 1*", "*uniform N=2*mini-ldm*", "written: *table1.md*"]
    )
    assert [r.row for r in read(pytester.path / "out/records.jsonl")] == ["uncached", "uniform N=2", "uniform N=3"]
    assert {p.name for p in (pytester.path / "out").iterdir()} == {
        "all.csv",
        "all.md",
        "records.jsonl", "table1.md", "table1.csv", "table1.tex"
    }  # fmt: skip


def test_a_failed_test_keeps_its_record_and_says_so(pytester, bench):
    bench(fails=True)
    pytester.runpytest_inprocess("--tables", "out").assert_outcomes(passed=2, failed=1)
    assert [r.outcome for r in read(pytester.path / "out/records.jsonl")] == ["passed", "failed", "passed"]
    assert "uniform N=2 (failed)" in (pytester.path / "out/table1.md").read_text()


def test_records_stand_in_pytest_benchmarks_json(pytester, bench, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # by which pytest-benchmark disables itself
    bench()
    pytester.runpytest_inprocess("--benchmark-json", "results.json").assert_outcomes(passed=3)
    assert [r.row for r in read(pytester.path / "results.json")] == ["uncached", "uniform N=2", "uniform N=3"]
    assert len(json.loads((pytester.path / "results.json").read_text())["benchmarks"]) == 1


@pytest.mark.parametrize("options", [("-k", "uniform or last"), ("-n", "2")], ids=["untimed", "xdist"])
def test_results_of_an_older_run_do_not_pass_for_those_of_one_that_timed_nothing(pytester, bench, monkeypatch, options):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # by which pytest-benchmark disables itself
    bench()
    old = Record("table1", "of an older run", {}, {}).as_dict()
    (pytester.path / "results.json").write_text(json.dumps({"benchmarks": [{"name": "old"}], "deepcache": [old]}))
    result = pytester.runpytest_subprocess("--benchmark-json", "results.json", *options)
    assert result.ret == 0
    rows = ["uncached"] * ("-n" in options) + ["uniform N=2", "uniform N=3"]
    assert [r.row for r in read(pytester.path / "results.json")] == rows
    assert json.loads((pytester.path / "results.json").read_text())["benchmarks"] == []
    again = pytester.runpytest_subprocess("--benchmark-compare", "results.json", "-k", "uniform")
    assert again.ret == 0


def test_finished_rows_survive_a_kill_and_render(pytester, bench):
    bench(killed=True)
    result = pytester.runpytest_subprocess("--tables", "out")
    assert result.ret == -9
    shown = pytester.run(sys.executable, "-m", "deepcache", "tables", "out/records.jsonl", "--out", "later")
    assert shown.ret == 0
    assert [r.row for r in read(pytester.path / "out/records.jsonl")] == ["uncached", "uniform N=2"]
    assert "uniform N=2" in (pytester.path / "later/table1.md").read_text()


@pytest.mark.parametrize("options", [(), ("-n", "2", "-p", "no:benchmark")], ids=["one process", "xdist"])
def test_a_test_that_is_run_again_leaves_one_record_its_last(pytester, options):
    """By pytest-rerunfailures; the first two attempts fail, after they recorded."""
    pytester.makepyfile(
        """
        from pathlib import Path

        def test_before(record):
            record(experiment="table1", row="before", settings={}, metrics={})

        def test_it(record):
            attempts = Path("attempts")
            number = len(attempts.read_text()) + 1 if attempts.exists() else 1
            attempts.write_text("x" * number)
            for row in ("one", "two"):
                record(experiment="table1", row=row, settings={}, metrics={"macs": number})
            assert number == 3
        """
    )
    result = pytester.runpytest_subprocess("--reruns", "2", "--tables", "out", *options)
    assert result.ret == 0
    found = {(r.row, r.metrics.get("macs"), r.outcome) for r in read(pytester.path / "out/records.jsonl")}
    assert found == {("before", None, "passed"), ("one", 3, "passed"), ("two", 3, "passed")}
    assert len(read(pytester.path / "out/records.jsonl")) == 3


def test_records_of_xdists_workers_come_together(pytester, bench):
    bench()
    pytester.runpytest_subprocess("-n", "2", "--tables", "out", "-p", "no:benchmark").assert_outcomes(
        passed=2, errors=1
    )
    assert sorted(r.row for r in read(pytester.path / "out/records.jsonl")) == ["uniform N=2", "uniform N=3"]


def test_a_new_run_begins_a_new_file_and_one_without_records_leaves_the_old(pytester, bench):
    bench()
    for _ in range(2):
        pytester.runpytest_inprocess("--tables", "out", "-k", "uniform")
    pytester.runpytest_inprocess("--tables", "out", "-k", "nothing")
    assert len(read(pytester.path / "out/records.jsonl")) == 1


def test_the_plugin_does_nothing_unless_asked(pytester, bench):
    bench()
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=3)
    result.stdout.no_fnmatch_line("*deepcache tables*")
    assert {p.suffix for p in pytester.path.iterdir() if p.is_file()} <= {".py"}


def test_the_plugin_imports_no_torch(pytester):
    code = "import sys, deepcache.results.plugin, deepcache.results.tables as t; sys.exit('torch' in sys.modules)"
    assert pytester.run(sys.executable, "-c", code).ret == 0

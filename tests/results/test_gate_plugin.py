"""`pytest --paper-gate`, end to end in runs of its own."""

from __future__ import annotations

import json

import pytest

from deepcache.__main__ import main
from deepcache.results.layout import Layout
from deepcache.results.record import Record, read

BENCH = """
    import pytest
    from pathlib import Path
    from deepcache.results.layout import Column, Layout

    TABLE = Layout("table1", columns=(Column("macs", "MACs", 0),))
    SETUPS = Path("setups")

    @pytest.fixture(scope="session")
    def model():
        SETUPS.write_text(SETUPS.read_text() + "s" if SETUPS.exists() else "s")

    def measured(record, row, **metrics):
        runs = Path(row)
        number = len(runs.read_text()) if runs.exists() else 0
        runs.write_text("x" * (number + 1))
        metrics = {"macs": 10, **{name: value[number] for name, value in metrics.items()}}
        record(table=TABLE, key={"row": row}, settings={"model": "mini"}, metrics=metrics, label=row)

    def num_runs(row):
        return len(Path(row).read_text())

    @(pytest.mark.flaky(reruns=2) if MARKED else lambda test: test)
    def test_first(record, model):
        measured(record, "first", FIRST)
        assert not FAILS

    def test_last(record, model):
        measured(record, "last")
"""
BASELINE = [
    Record(Layout("table1"), {"row": row}, {"model": "mini"}, {"macs": 10, **speed}, {}, "passed", label=row)
    for row, speed in (("first", {"speedup": 2.0, "shallow_share": 0.3}), ("last", {}))
]


@pytest.fixture
def bench(pytester):
    """A run of two tests whose first records these metrics, one value a run of it."""

    def make(
        first: str,
        *options: str,
        fails: str = "False",
        marked: str = "False",
        gate: bool = True,
    ):
        for row in ("first", "last"):
            (pytester.path / row).unlink(missing_ok=True)
        pytester.makepyfile(BENCH.replace("FIRST", first).replace("FAILS", fails).replace("MARKED", marked))
        (pytester.path / "base.json").write_text(json.dumps({"deepcache": [r.as_dict() for r in BASELINE]}))
        return pytester.runpytest_inprocess(*(["--paper-gate", "base.json"] if gate else []), *options)

    return make


def num_runs(pytester, row: str) -> int:
    return len((pytester.path / row).read_text())


def test_a_run_like_its_baseline_passes(pytester, bench):
    result = bench("speedup=[2.0], shallow_share=[0.3]")
    assert result.ret == 0
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*= deepcache gate =*", "gate: 2 records compared, 0 regressions"])
    assert (num_runs(pytester, "first"), num_runs(pytester, "last")) == (1, 1)


def test_a_count_that_grew_fails_the_session_though_all_tests_pass(pytester, bench):
    result = bench("macs=[11], speedup=[2.0], shallow_share=[0.3]")
    assert result.ret == 1
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["gate: 2 records compared, 1 regression", "regression: table1 / first*macs: 10 -> 11*"]
    )
    assert num_runs(pytester, "first") == 1  # counts do not change when run again


@pytest.mark.parametrize(
    "slow", ["speedup=[1.0, 2.1], shallow_share=[0.3, 0.3]", "speedup=[2.0, 2.0], shallow_share=[0.4, 0.3]"]
)
def test_what_was_slow_once_is_run_again_and_passes(pytester, bench, slow):
    result = bench(slow, "--paper-tables", "out")
    assert result.ret == 0
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["gate: 2 records compared, 0 regressions", "note: *not confirmed by a re-run*"])
    assert (num_runs(pytester, "first"), num_runs(pytester, "last")) == (2, 1)
    assert (pytester.path / "setups").read_text() == "s"  # the session's fixtures outlive a re-run
    (kept, last) = read(pytester.path / "out/records.jsonl")
    assert (kept.metrics["shallow_share"], kept.outcome, last.label) == (0.3, "passed", "last")


def test_what_is_slow_twice_is_a_regression_and_the_last_record_stays(pytester, bench):
    result = bench("speedup=[1.0, 1.1, 2.0]", "--paper-tables", "out")
    assert result.ret == 1
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["regression: *speedup: 2 -> 1 (-50.0%)*confirmed by a re-run, 1.1"])
    assert num_runs(pytester, "first") == 2
    assert read(pytester.path / "out/records.jsonl")[0].metrics["speedup"] == 1.1


def test_of_two_ratios_each_may_be_found_by_another_run(bench):
    assert bench("speedup=[1.0, 2.0], shallow_share=[0.3, 0.4]").ret == 0
    assert bench("speedup=[1.0, 1.0], shallow_share=[0.3, 0.4]").ret == 1


def test_a_re_run_that_fails_confirms(pytester, bench):
    result = bench("speedup=[1.0]")  # no second value: IndexError before it records
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["regression: *; the re-run failed"])
    assert num_runs(pytester, "first") == 2


def test_the_last_test_of_a_session_is_run_again_too(bench):
    result = bench("speedup=[1.0, 2.0]", "-k", "first")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["regression: table1 / last (mini): missing*", "note: *not confirmed by a re-run*"])


def test_what_cannot_be_compared_ends_the_session_with_2_unless_allowed(bench):
    result = bench("macs=[10]", "--benchmark-disable")
    assert result.ret == 2
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["cannot be compared: speed not measured: 1 record (table1 / first (mini))"])
    result.stdout.fnmatch_lines(["to compare the rest all the same: --allow speed (of pytest: --paper-gate-allow)"])
    result = bench("macs=[10]", "--benchmark-disable", "--paper-gate-allow", "speed")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["note: speed not measured: 1 record (table1 / first (mini)); allowed"])
    assert bench("macs=[10]", fails="True").ret == 1  # a test that failed is said before what cannot be compared


def test_an_allowance_is_one_of_the_list_and_needs_a_gate(pytester, bench):
    assert bench("macs=[10]", "--paper-gate-allow", "weather").ret == pytest.ExitCode.USAGE_ERROR
    result = pytester.runpytest_inprocess("--paper-gate-allow", "speed")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --paper-gate-allow: expected --paper-gate BASELINE beside it*"])


@pytest.mark.parametrize(("first", "code"), [("speedup=[0.1]", 0), ("macs=[11]", 1)])
def test_workers_leave_the_gate_to_the_controller_and_their_times_out(pytester, bench, first, code):
    result = bench(first, "-n", "1", "-p", "no:benchmark", "--paper-gate-allow", "speed")
    assert result.ret == code
    result.assert_outcomes(passed=2)
    assert result.stdout.str().count("gate: 2 records compared") == 1
    result.stdout.fnmatch_lines(["note: speed not measured: 1 record *"])
    assert num_runs(pytester, "first") == 1


def test_the_record_of_a_re_run_stands_in_pytest_benchmarks_json(pytester, bench, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # by which pytest-benchmark disables itself
    pytester.makepyfile(test_timed="def test_timed(benchmark):\n    benchmark.pedantic(lambda: None)\n")
    assert bench("speedup=[1.0, 2.0], shallow_share=[0.3, 0.3]", "--benchmark-json", "results.json").ret == 0
    assert [r.metrics.get("speedup") for r in read(pytester.path / "results.json")] == [2.0, None]
    assert main(["gate", "base.json", "results.json"]) == 0


def test_what_fails_twice_is_a_regression(pytester, bench):
    result = bench("speedup=[2.0, 2.0]", fails="True")
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["regression: table1 / first (mini): failed"])
    assert num_runs(pytester, "first") == 2


@pytest.mark.parametrize("speedup", ["[1.0, 2.1]", "[2.0, 2.0]", "[2.0, 1.0]"], ids=["slow", "alike", "fast"])
def test_what_failed_once_is_run_again_and_passes_with_a_note(pytester, bench, speedup):
    result = bench(
        f"speedup={speedup}, shallow_share=[0.3, 0.3]", "--paper-tables", "out", fails="num_runs('first') == 1"
    )
    assert result.ret == 0
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["note: table1 / first (mini): failed, and passed when run again"])
    assert num_runs(pytester, "first") == 2
    assert [r.outcome for r in read(pytester.path / "out/records.jsonl")] == ["passed", "passed"]


def test_what_failed_once_and_is_slow_twice_is_a_regression(bench):
    result = bench("speedup=[1.0, 1.1]", fails="num_runs('first') == 1")
    assert result.ret == 1
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["regression: *speedup: 2 -> 1 (-50.0%)*confirmed by a re-run, 1.1"])


FAILS_TWICE = "num_runs('first') < 3"


@pytest.mark.parametrize("reruns", ["--reruns", "marker"])
def test_a_row_that_fails_is_run_once_more_and_then_as_often_as_reruns_says(pytester, bench, reruns):
    """By pytest-rerunfailures; the last attempt passes and leaves the only record."""
    options = ("--reruns", "2") if reruns == "--reruns" else ("-o", "markers=flaky")
    marked = "False" if reruns == "--reruns" else "True"
    values = "speedup=[2.0, 2.0, 2.0], shallow_share=[0.3, 0.3, 0.3]"
    result = bench(values, *options, "--paper-tables", "out", fails=FAILS_TWICE, marked=marked)
    assert result.ret == 0
    result.assert_outcomes(passed=2)
    assert num_runs(pytester, "first") == 3
    assert [(r.label, r.outcome) for r in read(pytester.path / "out/records.jsonl")] == [
        ("first", "passed"),
        ("last", "passed"),
    ]
    values = "speedup=4 * [2.0], shallow_share=4 * [0.3]"
    assert bench(values, "--reruns", "1", fails="num_runs('first') < 4").ret == 1


def test_a_run_that_passed_by_reruns_passes_the_gates_command(pytester, bench, capsys):
    """The session is not gated itself: pytest-rerunfailures runs the failed row."""
    values = "speedup=[2.0, 2.0, 2.0], shallow_share=[0.3, 0.3, 0.3]"
    result = bench(values, "--reruns", "2", "--paper-tables", "out", fails=FAILS_TWICE, gate=False)
    assert (result.ret, num_runs(pytester, "first")) == (0, 3)
    found = read(pytester.path / "out/records.jsonl")
    assert [(r.label, r.outcome) for r in found] == [("first", "passed"), ("last", "passed")]
    capsys.readouterr()
    assert main(["gate", "base.json", "out/records.jsonl"]) == 0
    assert capsys.readouterr().out == "gate: 2 records compared, 0 regressions\n"


def test_a_run_that_fails_to_the_last_rerun_fails_the_gates_command(bench, capsys):
    bench(
        "speedup=[2.0, 2.0], shallow_share=[0.3, 0.3]",
        "--reruns",
        "1",
        "--paper-tables",
        "out",
        fails="True",
        gate=False,
    )
    capsys.readouterr()
    assert main(["gate", "base.json", "out/records.jsonl"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == ["regression: table1 / first (mini): failed"]


def test_collecting_alone_gates_nothing(bench):
    assert bench("macs=[11]", "--collect-only").ret == 0


@pytest.mark.parametrize("text", [None, "{", "[1, 2]"])
def test_a_baseline_that_cannot_be_read_is_one_line(pytester, text):
    pytester.makepyfile("def test_it(): pass")
    if text is not None:
        (pytester.path / "base.json").write_text(text)
    result = pytester.runpytest_inprocess("--paper-gate", "base.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.str().strip().startswith("ERROR: --paper-gate: ")
    assert result.stderr.str().strip().count("\n") == 0

"""The pytest plugin: it gathers the records of finished tests and makes tables, a report and a verdict of them.

It does nothing unless a test asks for the fixture `record`, or the command line for one of the options `--paper-...`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deepcache.errors import DeepCacheError, first_line
from deepcache.results import write_report, write_tables
from deepcache.results.compare import ALLOWANCES, HELP, SPEED, suspects
from deepcache.results.gate import Identity, Verdict, by_identity, gate, identity
from deepcache.results.layout import Layout
from deepcache.results.record import Record, from_entries, layout_entry, read

PROPERTY = "deepcache_entries"  # of a test's report: the place of the test in the session, a layout, and a record
RERUN = "rerun"  # the outcome of an attempt that is followed by another, as pytest-rerunfailures calls it
RECORDS = "records.jsonl"
COLLECTOR = "deepcache-collector"
Entry = dict[str, Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("deepcache").addoption
    tables = f"write the records as tests finish (DIR/{RECORDS}) and the tables at the end (Markdown, CSV, LaTeX)"
    report = "write one HTML page at the end: tables, plots, pictures, environment and commands"
    gated = (
        "compare the records with this baseline, run a test once more if its row is slower or failed, and exit "
        "with 1 on a regression, with 2 where something cannot be compared"
    )
    for name, metavar, text in (("tables", "DIR", tables), ("report", "FILE", report), ("gate", "BASELINE", gated)):
        add(f"--paper-{name}", metavar=metavar, type=Path, help=text)
    add("--paper-gate-allow", action="append", default=[], choices=ALLOWANCES, metavar="WHAT", help=HELP)


def pytest_configure(config: pytest.Config) -> None:
    collector = Collector(config)
    config.pluginmanager.register(collector, COLLECTOR)
    baseline = config.getoption("--paper-gate")
    if config.getoption("--paper-gate-allow") and baseline is None:
        raise pytest.UsageError("--paper-gate-allow: expected --paper-gate BASELINE beside it, got none")
    if baseline is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Gate(config.invocation_params.dir / baseline, collector), "deepcache-gate")


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`record(table=LAYOUT, key={...}, settings={...}, metrics={...})` keeps what a test measured.

    The arguments are the fields of `deepcache.results.record.Record`. Call it before the assertions, so that the record
    of a failed test is kept too, with its outcome.
    """

    def keep(**fields: Any) -> None:
        found = Record(test=request.node.nodeid.partition("::")[0], **fields)
        collector: Any = request.config.pluginmanager.get_plugin(COLLECTOR)
        if collector.tables.setdefault(found.table.name, found.table) != found.table:
            raise ValueError(f"expected one table of the name {found.table.name!r}, got two; rename one of them")
        place = request.session.items.index(request.node)  # the same in every worker of xdist
        request.node.user_properties.append((PROPERTY, [place, layout_entry(found.table), found.as_dict()]))

    return keep


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forget what an earlier attempt of the same test recorded."""
    item.user_properties[:] = [each for each in item.user_properties if each[0] != PROPERTY]


def recorded(report: pytest.TestReport) -> list[tuple[int, Entry, Entry]]:
    """Return the place, the layout and the record, with its outcome, of all that a finished test recorded."""
    found: list[Any] = [each for name, each in report.user_properties if name == PROPERTY and report.when == "call"]
    return [(place, layout, {**entry, "outcome": report.outcome}) for place, layout, entry in found]


class Collector:
    """Gathers the records of finished tests, of this process or of xdist's workers."""

    def __init__(self, config: pytest.Config) -> None:
        self.folder = _place(config, "--paper-tables", is_folder=True)
        self.report = _place(config, "--paper-report")
        self.results = _place(config, "--benchmark-json")
        self.command = shlex.join(["pytest", *map(str, config.invocation_params.args)])
        self.tables: dict[str, Layout] = {}  # by name, of the tests that this process runs
        self._layouts: dict[str, Entry] = {}  # by name
        self._finished: dict[str, tuple[int, list[Entry]]] = {}  # by test: its place, and its last records

    @property
    def entries(self) -> list[Entry]:
        """Every layout once, and the records of each test's last attempt, in the order of the tests."""
        in_order = sorted(self._finished.values(), key=lambda each: each[0])
        return [*self._layouts.values(), *(entry for _, entries in in_order for entry in entries)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = recorded(report)
        if not found:
            return
        layouts = [layout for _, layout, _ in found]
        new = [each for each in layouts if self._layouts.setdefault(each["layout"]["name"], each) is each]
        is_new = report.nodeid in self._finished or not self._finished  # the first records of a run begin a new file
        self._finished[report.nodeid] = (found[0][0], [entry for _, _, entry in found])
        if self.folder is not None:
            entries = self.entries if is_new else [*new, *self._finished[report.nodeid][1]]
            with open(self.folder / RECORDS, "w" if is_new else "a") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        output_json["deepcache"] = self.entries

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Write the results without times; pytest-benchmark replaces the file if it timed something.

        If it timed nothing, as under xdist, it writes no file, and an older run's file would pass for this run's.
        """
        if self.results is not None and self._finished:
            machine = session.config.hook.pytest_benchmark_generate_machine_info(config=session.config)
            untimed = {"machine_info": machine, "benchmarks": [], "deepcache": self.entries}
            self.results.write_text(json.dumps(untimed, indent=4))
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, None, None]:
        yield
        report = partial(write_report, made_by=self.command)
        for name, place, write in (("tables", self.folder, write_tables), ("report", self.report, report)):
            if place is not None and self._finished:
                terminalreporter.section(f"deepcache {name}")
                try:
                    terminalreporter.write_line(write(from_entries(self.entries), place))
                except Exception as error:  # whatever it is, pytest-benchmark has yet to write the results
                    said = error if isinstance(error, DeepCacheError) else first_line(error)
                    terminalreporter.write_line(f"--paper-{name}: {said}")


class Gate:
    """Runs a test once more if its row looks slower or failed, and compares all records at the end."""

    def __init__(self, path: Path, collector: Collector) -> None:
        try:
            self.bases = by_identity(read(path), "the baseline")
        except DeepCacheError as error:
            raise pytest.UsageError(f"--paper-gate: {error}") from error
        self.collector = collector
        self.first: dict[Identity, Record] = {}  # the first attempts of tests that were run again
        self.again: dict[Identity, Record] = {}  # their second attempts
        self._is_second = self._is_suspect = False
        self.verdict: Verdict | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: Any) -> Generator[None, object, object]:
        """Run a suspect again at once, while the fixtures that it shares with the next test still stand."""
        result = yield
        if self._is_suspect and not self._is_second:
            self._is_second = True
            item.ihook.pytest_runtest_protocol(item=item, nextitem=nextitem)
            self._is_second = self._is_suspect = False
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note the records of both attempts, and give the first attempt of a suspect the outcome "rerun"."""
        report = yield
        found = {identity(each): each for each in from_entries([entry for _, _, entry in recorded(report)])}
        if self._is_second:
            self.again |= found
        elif found and (report.failed or any(suspects(self.bases.get(k, each), each) for k, each in found.items())):
            self._is_suspect = True
            self.first |= found
            report.outcome = RERUN  # type: ignore[assignment]
        return report

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        return (RERUN, "R", "RERUN") if report.outcome == RERUN else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        asked = session.config.option
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or asked.collectonly:
            return
        records = [self.first.get(identity(record), record) for record in from_entries(self.collector.entries)]
        reruns = [self.again.get(each, replace(record, outcome="failed")) for each, record in self.first.items()]
        if session.config.pluginmanager.hasplugin("dsession"):  # times on several processes mean nothing
            records = [replace(r, metrics={k: v for k, v in r.metrics.items() if k not in SPEED}) for r in records]
        self.verdict = gate([*self.bases.values()], records, reruns, allow=asked.paper_gate_allow)
        if exitstatus == pytest.ExitCode.OK:
            session.exitstatus = self.verdict.exit_code

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, None, None]:
        yield
        terminalreporter.section("deepcache gate")
        terminalreporter.write_line(str(self.verdict or "not gated: the tests did not run to their end"))


def _place(config: pytest.Config, option: str, *, is_folder: bool = False) -> Path | None:
    """Return the path to write that an option names, and make its folder; None where nothing is to be written."""
    given = config.getoption(option, None)
    # older versions of pytest-benchmark give an open file, and the controller writes what a worker of xdist measures
    if not isinstance(given, Path) or hasattr(config, "workerinput"):
        return None
    path = config.invocation_params.dir / given
    try:
        (path if is_folder else path.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(f"{option}: cannot write to {path}: {error}") from error
    if not is_folder and path.is_dir():
        raise pytest.UsageError(f"{option}: expected a file to write, {path} is a folder")
    return path

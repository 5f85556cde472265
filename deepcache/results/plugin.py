"""The pytest plugin: records as tests finish, in pytest-benchmark's JSON, and as tables and a report at the end.

Inert unless a test asks for the `record` fixture, or the command line for the gate.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from deepcache.errors import DeepCacheError, needs
from deepcache.results.conditions import ALLOWANCES, HELP
from deepcache.results.record import Record, from_dict

PROPERTY = "deepcache_record"
PLACE = "deepcache_place"
RECORDS = "records.jsonl"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deepcache")
    group.addoption(
        "--tables",
        metavar="DIR",
        type=Path,
        help=f"write the records as tests finish (DIR/{RECORDS}) and the tables at the end (Markdown, CSV, LaTeX)",
    )
    group.addoption(
        "--report",
        metavar="FILE",
        type=Path,
        help="write one HTML page at the end: tables, plots, pictures, environment and commands",
    )
    group.addoption(
        "--gate",
        metavar="BASELINE",
        type=Path,
        help="compare the records with this baseline, re-run what is slower or failed (once, or as often as --reruns "
        "says), and exit with 1 on a regression, with 2 where something cannot be compared",
    )
    group.addoption("--gate-allow", action="append", default=[], choices=ALLOWANCES, metavar="WHAT", help=HELP)


def pytest_configure(config: pytest.Config) -> None:
    collector = Collector(config)
    config.pluginmanager.register(collector, "deepcache-collector")
    if config.getoption("gate_allow") and config.getoption("gate") is None:
        raise pytest.UsageError("--gate-allow: expected --gate BASELINE beside it, got none")
    if config.getoption("gate") is not None and collector.writes:
        from deepcache.results.gate_plugin import Gate

        config.pluginmanager.register(Gate(config, collector), "deepcache-gate")


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`record(experiment=..., row=..., settings={...}, metrics={...})`: what this test measured.

    Call it before the assertions, so that a failed row is kept too, with its outcome.
    """

    def keep(**fields: Any) -> None:
        place = request.session.items.index(request.node)  # the same in every worker of xdist
        request.node.user_properties.extend([(PROPERTY, Record(**fields).as_dict()), (PLACE, place)])

    return keep


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forget what an earlier attempt of a test that is run again recorded."""
    item.user_properties[:] = [entry for entry in item.user_properties if entry[0] not in (PROPERTY, PLACE)]


def records_of(report: pytest.TestReport) -> list[dict[str, Any]]:
    """What a finished test recorded, with its outcome; nothing of its setup and its teardown."""
    if report.when != "call":
        return []
    found = (entry for name, entry in report.user_properties if name == PROPERTY)
    return [{**entry, "outcome": report.outcome} for entry in found if isinstance(entry, dict)]


class Collector:
    """Gathers records from finished tests, of this process or of xdist's workers."""

    def __init__(self, config: pytest.Config) -> None:
        self.folder = _place(config, "tables")
        self.report = _place(config, "report")
        self.results = _place(config, "benchmark_json")
        self.command = shlex.join(["pytest", *map(str, config.invocation_params.args)])
        self._finished: dict[str, tuple[int, list[dict[str, Any]]]] = {}  # by test: its place, and what it recorded
        self.writes = not hasattr(config, "workerinput")
        if self.writes:
            _prepare("--tables", self.folder)
            for option, file in (("--report", self.report), ("--benchmark-json", self.results)):
                _prepare(option, file and file.parent)
                if file and file.is_dir():
                    raise pytest.UsageError(f"{option}: expected a file to write, {file} is a folder")

    @property
    def records(self) -> list[dict[str, Any]]:
        """In the order of the tests, whoever finishes first; of a test that was run again those of its last attempt."""
        by_place = sorted(self._finished.values(), key=lambda each: each[0])
        return [entry for _, entries in by_place for entry in entries]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = records_of(report)
        if not found:
            return
        place = next((value for name, value in report.user_properties if name == PLACE and isinstance(value, int)), 0)
        is_again = report.nodeid in self._finished
        self._finished[report.nodeid] = (place, found)
        if self.folder is None or not self.writes:
            return
        if is_again or len(self._finished) == 1:  # the first records of a run begin a new file
            _write_lines(self.folder / RECORDS, "w", self.records)
        else:
            _write_lines(self.folder / RECORDS, "a", found)

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        output_json["deepcache"] = self.records

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """The results without times, which pytest-benchmark replaces where it timed something.

        Where it did not, as under xdist, it writes none, and those of an older run would pass for this one's.
        """
        if self.results is not None and self.writes and self.records:
            machine = session.config.hook.pytest_benchmark_generate_machine_info(config=session.config)
            untimed = {"machine_info": machine, "benchmarks": [], "deepcache": self.records}
            self.results.write_text(json.dumps(untimed, indent=4))
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, None, None]:
        yield
        if self.writes and self.records:
            self._write_tables(terminalreporter)
            self._write_report(terminalreporter)

    def _write_tables(self, terminalreporter: Any) -> None:
        if self.folder is None:
            return
        terminalreporter.section("deepcache tables")
        try:
            with needs("a table", "bench"):
                from deepcache.results.tables import render

                written = render([from_dict(entry) for entry in self.records], self.folder)
        except Exception as error:  # whatever it is, pytest-benchmark has yet to write the results
            terminalreporter.write_line(f"--tables: {_in_words(error)}")
            return
        for path in written:
            if path.suffix == ".md" and path.stem != "all":
                terminalreporter.write_line(path.read_text())
        terminalreporter.write_line("written: " + ", ".join(str(path) for path in written))

    def _write_report(self, terminalreporter: Any) -> None:
        if self.report is None:
            return
        terminalreporter.section("deepcache report")
        try:
            with needs("a report", "bench"):
                from deepcache.results import report

                written = report.write([from_dict(entry) for entry in self.records], self.report, self.command)
            terminalreporter.write_line(f"written: {written}")
        except Exception as error:  # as above
            terminalreporter.write_line(f"--report: {_in_words(error)}")


def _write_lines(path: Path, mode: str, entries: Sequence[dict[str, Any]]) -> None:
    with open(path, mode) as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def _place(config: pytest.Config, option: str) -> Path | None:
    """Where an option says to write; None where it was not given, or its plugin is not there, or opens the file."""
    path = config.getoption(option, None)
    return config.invocation_params.dir / path if isinstance(path, Path) else None


def _prepare(option: str, folder: Path | None) -> None:
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(f"{option}: cannot write to {folder}: {error}") from error


def _in_words(error: Exception) -> str:
    if isinstance(error, DeepCacheError):
        return str(error)
    return f"{' '.join(str(error).split())} ({type(error).__name__})"

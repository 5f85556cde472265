"""The pytest plugin: it gathers the records of finished tests and makes tables, a report and a verdict of them.

The records and the layouts of their tables also go into pytest-benchmark's JSON. The plugin does nothing unless a test
asks for the fixture `record`, or the command line for one of the options `--paper-...`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deepcache.errors import DeepCacheError, first_line, needs
from deepcache.results.compare import ALLOWANCES, HELP, SPEED, suspects
from deepcache.results.layout import Layout
from deepcache.results.record import Record, from_entries, layout_entry, read

if TYPE_CHECKING:
    from deepcache.results.gate import Identity, Verdict

PROPERTY = "deepcache_entry"  # of a test report: a layout or a record, as a results file has it
PLACE = "deepcache_place"  # of a test report: the place of the test in the session
RERUN = "rerun"  # the outcome of an attempt that is followed by another, as pytest-rerunfailures calls it
RECORDS = "records.jsonl"
_LAYOUTS = pytest.StashKey[dict[str, Layout]]()
Entry = dict[str, Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("deepcache").addoption
    add(
        "--paper-tables",
        metavar="DIR",
        type=Path,
        help=f"write the records as tests finish (DIR/{RECORDS}) and the tables at the end (Markdown, CSV, LaTeX)",
    )
    add(
        "--paper-report",
        metavar="FILE",
        type=Path,
        help="write one HTML page at the end: tables, plots, pictures, environment and commands",
    )
    add(
        "--paper-gate",
        metavar="BASELINE",
        type=Path,
        help="compare the records with this baseline, run a test once more if its row is slower or failed, and exit "
        "with 1 on a regression, with 2 where something cannot be compared",
    )
    add("--paper-gate-allow", action="append", default=[], choices=ALLOWANCES, metavar="WHAT", help=HELP)


def pytest_configure(config: pytest.Config) -> None:
    collector = Collector(config)
    config.pluginmanager.register(collector, "deepcache-collector")
    config.stash[_LAYOUTS] = {}
    baseline = config.getoption("paper_gate")
    if config.getoption("paper_gate_allow") and baseline is None:
        raise pytest.UsageError("--paper-gate-allow: expected --paper-gate BASELINE beside it, got none")
    if baseline is not None and collector.writes:
        config.pluginmanager.register(Gate(config.invocation_params.dir / baseline, collector), "deepcache-gate")


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`record(table=LAYOUT, key={...}, settings={...}, metrics={...})` keeps what a test measured.

    The arguments are the fields of `deepcache.results.record.Record`. Call it before the assertions, so that the record
    of a failed test is kept too, with its outcome.
    """
    layouts = request.config.stash[_LAYOUTS]

    def keep(**fields: Any) -> None:
        found = Record(test=request.node.nodeid.partition("::")[0], **fields)
        if layouts.setdefault(found.table.name, found.table) != found.table:
            raise ValueError(f"expected one table of the name {found.table.name!r}, got two; rename one of them")
        place = request.session.items.index(request.node)  # the same in every worker of xdist
        entries = [layout_entry(found.table), found.as_dict()]
        request.node.user_properties.extend([(PLACE, place), *((PROPERTY, entry) for entry in entries)])

    return keep


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forget what an earlier attempt of the same test recorded."""
    item.user_properties[:] = [entry for entry in item.user_properties if entry[0] not in (PROPERTY, PLACE)]


def entries_of(report: pytest.TestReport) -> list[Entry]:
    """Return the layouts and records of a finished test, the records with its outcome; nothing for other phases."""
    if report.when != "call":
        return []
    found = [entry for name, entry in report.user_properties if name == PROPERTY and isinstance(entry, dict)]
    return [entry if "layout" in entry else {**entry, "outcome": report.outcome} for entry in found]


class Collector:
    """Gathers the records of finished tests, of this process or of xdist's workers."""

    def __init__(self, config: pytest.Config) -> None:
        self.folder = _place(config, "paper_tables")
        self.report = _place(config, "paper_report")
        self.results = _place(config, "benchmark_json")
        self.command = shlex.join(["pytest", *map(str, config.invocation_params.args)])
        self._finished: dict[str, tuple[int, list[Entry]]] = {}  # by test: its place, and its entries
        self.writes = not hasattr(config, "workerinput")
        if self.writes:
            _prepare("--paper-tables", self.folder)
            for option, file in (("--paper-report", self.report), ("--benchmark-json", self.results)):
                _prepare(option, file and file.parent)
                if file and file.is_dir():
                    raise pytest.UsageError(f"{option}: expected a file to write, {file} is a folder")

    @property
    def entries(self) -> list[Entry]:
        """Every layout once, and the records of each test's last attempt, in the order of the tests."""
        in_order = sorted(self._finished.values(), key=lambda each: each[0])
        return _without_repeated_layouts(entry for _, entries in in_order for entry in entries)

    def records(self) -> list[Record]:
        """Return the records with their layouts."""
        return from_entries(self.entries)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = entries_of(report)
        if not found:
            return
        before = self.entries
        place = next((value for name, value in report.user_properties if name == PLACE and isinstance(value, int)), 0)
        is_again = report.nodeid in self._finished
        self._finished[report.nodeid] = (place, found)
        if self.folder is None or not self.writes:
            return
        if is_again or len(self._finished) == 1:  # the first records of a run begin a new file
            _write_lines(self.folder / RECORDS, "w", self.entries)
        else:
            _write_lines(self.folder / RECORDS, "a", _without_repeated_layouts([*before, *found])[len(before) :])

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        output_json["deepcache"] = self.entries

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Write the results without times; pytest-benchmark replaces the file if it timed something.

        If it timed nothing, as under xdist, it writes no file, and an older run's file would pass for this run's.
        """
        if self.results is not None and self.writes and self._finished:
            machine = session.config.hook.pytest_benchmark_generate_machine_info(config=session.config)
            untimed = {"machine_info": machine, "benchmarks": [], "deepcache": self.entries}
            self.results.write_text(json.dumps(untimed, indent=4))
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, None, None]:
        yield
        if self.writes and self._finished:
            for name, place, show in (
                ("tables", self.folder, self._write_tables),
                ("report", self.report, self._write_report),
            ):
                if place is not None:
                    terminalreporter.section(f"deepcache {name}")
                    try:
                        terminalreporter.write_line(show(place))
                    except Exception as error:  # whatever it is, pytest-benchmark has yet to write the results
                        said = error if isinstance(error, DeepCacheError) else first_line(error)
                        terminalreporter.write_line(f"--paper-{name}: {said}")

    def _write_tables(self, folder: Path) -> str:
        with needs("a table", "bench"):
            from deepcache.results.tables import render

            written = render(self.records(), folder)
        shown = [path.read_text(encoding="utf-8") for path in written if path.suffix == ".md" and path.stem != "all"]
        return "\n".join([*shown, "written: " + ", ".join(map(str, written))])

    def _write_report(self, file: Path) -> str:
        with needs("a report", "bench"):
            from deepcache.results import report

            return f"written: {report.write(self.records(), file, self.command)}"


class Gate:
    """Runs a test once more if its row looks slower or failed, and compares all records at the end.

    Times of a run on several processes mean nothing: they are left out as if they had not been measured.

    Raises:
        pytest.UsageError: the baseline is not there or cannot be read.
    """

    def __init__(self, path: Path, collector: Collector) -> None:
        from deepcache.results.gate import by_identity

        try:
            self.baseline = read(path)
            self._bases = by_identity(self.baseline, "the baseline")
        except DeepCacheError as error:
            raise pytest.UsageError(f"--paper-gate: {error}") from error
        self.collector = collector
        self.first: dict[Identity, Record] = {}  # the first attempts of tests that were run again
        self.again: dict[Identity, Record] = {}  # their second attempts
        self._is_second = self._is_suspect = False
        self.verdict: Verdict | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
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
        from deepcache.results.gate import identity

        report = yield
        found = {identity(each): each for each in from_entries(entries_of(report))}
        if self._is_second:
            self.again |= found
        elif found and (report.failed or self._num_suspect(found)):
            self._is_suspect = True
            self.first |= found
            report.outcome = RERUN  # type: ignore[assignment]
        return report

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        return (RERUN, "R", "RERUN") if report.outcome == RERUN else None

    def _num_suspect(self, found: dict[Identity, Record]) -> int:
        """Count the ratios of times that look worse than the baseline's."""
        return sum(len(suspects(self._bases[each], found[each])) for each in found.keys() & self._bases.keys())

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        from deepcache.results.gate import gate, identity

        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if not ended or session.config.option.collectonly:
            return
        records = [self.first.get(identity(record), record) for record in self.collector.records()]
        reruns = [self.again.get(each, replace(record, outcome="failed")) for each, record in self.first.items()]
        if session.config.pluginmanager.hasplugin("dsession"):
            records = [_untimed(record) for record in records]
        self.verdict = gate(self.baseline, records, reruns, allow=session.config.getoption("paper_gate_allow"))
        if exitstatus == pytest.ExitCode.OK:
            session.exitstatus = self.verdict.exit_code

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, None, None]:
        yield
        terminalreporter.section("deepcache gate")
        terminalreporter.write_line(str(self.verdict or "not gated: the tests did not run to their end"))


def _untimed(record: Record) -> Record:
    return replace(record, metrics={name: value for name, value in record.metrics.items() if name not in SPEED})


def _without_repeated_layouts(entries: Iterable[Entry]) -> list[Entry]:
    found: dict[str | int, Entry] = {}
    for number, entry in enumerate(entries):
        found.setdefault(entry["layout"]["name"] if "layout" in entry else number, entry)
    return [*found.values()]


def _write_lines(path: Path, mode: str, entries: Sequence[Entry]) -> None:
    with open(path, mode) as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def _place(config: pytest.Config, option: str) -> Path | None:
    """Return the path that an option names; None where the option was not given, or is another plugin's open file."""
    path = config.getoption(option, None)
    return config.invocation_params.dir / path if isinstance(path, Path) else None


def _prepare(option: str, folder: Path | None) -> None:
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(f"{option}: cannot write to {folder}: {error}") from error

"""`pytest --gate BASELINE`: re-run what looks slower or failed, compare at the end, fail on a regression.

In a run on several processes times mean nothing: ratios are then left out, as if they had not been measured.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol  # what pytest-rerunfailures and pytest-xdist call, too

from deepcache.errors import DeepCacheError
from deepcache.results.compare import SPEED, suspects
from deepcache.results.gate import Key, Verdict, gate, key, keyed
from deepcache.results.plugin import Collector, records_of
from deepcache.results.record import Record, from_dict, read


class Gate:
    """The gate of a session.

    Raises:
        pytest.UsageError: no baseline at the path given, or one that cannot be read.
    """

    def __init__(self, config: pytest.Config, collector: Collector) -> None:
        path: Path = config.invocation_params.dir / config.getoption("gate")
        try:
            self.baseline = read(path)
            self._bases = keyed(self.baseline, "the baseline")
        except DeepCacheError as error:
            raise pytest.UsageError(f"--gate: {error}") from error
        self.collector = collector
        self.first: dict[Key, Record] = {}  # of what was re-run
        self.reruns: list[Record] = []
        self.verdict: Verdict | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """As pytest's own, but reports of two runs of a suspect only the better."""
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item, nextitem):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _reports(self, item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        """Of the first run; a suspect is run again at once, while what it shares with the next tests still stands.

        A failed row is one, since its own assertion may be on times. One that fails again is run as often as
        pytest-rerunfailures would.
        """
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        first = _records(reports)
        failed = any(record.outcome != "passed" for record in first)
        if not failed and not self._num_suspect(first):
            return reports
        for _ in range(_most_reruns(item)):
            reports_again = runtestprotocol(item, log=False, nextitem=nextitem)
            if all(report.outcome != "failed" for report in reports_again):
                break
        again = {key(record): record for record in _records(reports_again)}
        self.first |= {key(record): record for record in first}
        self.reruns += [again.get(key(record), replace(record, outcome="failed")) for record in first]
        passed = bool(again) and all(report.outcome != "failed" for report in reports_again)
        is_better = failed or self._num_suspect(again.values()) < self._num_suspect(first)
        return reports_again if passed and is_better else reports

    def _num_suspect(self, records: Iterable[Record]) -> int:
        """Ratios of times that look worse than the baseline's."""
        pairs = ((self._bases.get(key(record)), record) for record in records)
        return sum(len(suspects(base, record)) for base, record in pairs if base is not None)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if not ended or session.config.option.collectonly:
            return
        records = [from_dict(entry) for entry in self.collector.records]
        records = [self.first.get(key(record), record) for record in records]
        if session.config.pluginmanager.hasplugin("dsession"):
            records = [_untimed(record) for record in records]
        self.verdict = gate(self.baseline, records, self.reruns, allow=session.config.getoption("gate_allow"))
        if exitstatus == pytest.ExitCode.OK:
            session.exitstatus = self.verdict.exit_code

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, None, None]:
        yield
        terminalreporter.section("deepcache gate")
        terminalreporter.write_line(str(self.verdict or "not gated: the tests did not run to their end"))


def _records(reports: Iterable[pytest.TestReport]) -> list[Record]:
    return [from_dict(entry) for report in reports for entry in records_of(report)]


def _most_reruns(item: pytest.Item) -> int:
    """Once, or as often as pytest-rerunfailures was asked for; the gate runs tests in its place."""
    plugin = item.config.pluginmanager.getplugin("rerunfailures")
    return max(1, plugin.get_reruns_count(item) or 0) if plugin is not None else 1


def _untimed(record: Record) -> Record:
    return replace(record, metrics={name: value for name, value in record.metrics.items() if name not in SPEED})

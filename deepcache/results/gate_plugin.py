"""`pytest --gate BASELINE`: re-run once what looks slower, compare at the end, fail on a regression.

In a run on several processes times mean nothing: ratios are then left out.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol  # what pytest-rerunfailures and pytest-xdist call, too

from deepcache.errors import DeepCacheError
from deepcache.results.compare import SPEED, suspects
from deepcache.results.gate import Key, Verdict, gate, key, keyed
from deepcache.results.record import Record, from_dict, read

if TYPE_CHECKING:
    from deepcache.results.plugin import Collector


class Gate:
    """The gate of a session.

    Raises:
        pytest.UsageError: no baseline at the path given, or one that cannot be read.
    """

    def __init__(self, config: pytest.Config, collector: Collector) -> None:
        path: Path = config.invocation_params.dir / config.getoption("gate")
        try:
            self.baseline = read(path)
            self._bases = keyed(self.baseline, str(path))
        except DeepCacheError as error:
            raise pytest.UsageError(f"--gate: {error}") from error
        self.collector = collector
        self.first: dict[Key, Record] = {}  # of what was re-run
        self.reruns: list[Record] = []
        self.verdict: Verdict | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Re-run a suspect at once, while what it shares with the next tests (models, samples) still stands."""
        done = yield
        first = self.collector.by_test.get(item.nodeid, [])
        if any(self._suspects(entry) for entry in first):
            again = {key(from_dict(entry)): entry for entry in _rerun(item, nextitem)}
            for entry in first:
                self._choose(entry, again)
        return done

    def _suspects(self, entry: Mapping[str, Any]) -> list[str]:
        record = from_dict(entry)
        base = self._bases.get(key(record))
        return [] if base is None or record.outcome == "failed" else suspects(base, record)

    def _choose(self, entry: dict[str, Any], again: Mapping[Key, dict[str, Any]]) -> None:
        """Both are compared with the baseline; for tables, the one with fewer suspect ratios stays."""
        record = from_dict(entry)
        second = again.get(key(record), {**entry, "outcome": "failed"})  # or it failed before it recorded
        self.first[key(record)] = record
        self.reruns.append(from_dict(second))
        if second["outcome"] != "failed" and len(self._suspects(second)) < len(self._suspects(entry)):
            self.collector.replace(entry, second)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if not ended or session.config.option.collectonly:
            return
        records = [from_dict(entry) for entry in self.collector.records]
        records = [self.first.get(key(record), record) for record in records]
        if session.config.pluginmanager.hasplugin("dsession"):
            records = [_untimed(record) for record in records]
        self.verdict = gate(self.baseline, records, self.reruns)
        if self.verdict.failed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, None, None]:
        yield
        terminalreporter.section("deepcache gate")
        terminalreporter.write_line(str(self.verdict or "not gated: the tests did not run to their end"))


def _rerun(item: pytest.Item, nextitem: pytest.Item | None) -> list[dict[str, Any]]:
    """What the test records when it runs once more, unseen by the reporters, which counted it already."""
    from deepcache.results.plugin import PROPERTY, records_of

    item.user_properties[:] = [entry for entry in item.user_properties if entry[0] != PROPERTY]
    return [entry for report in runtestprotocol(item, log=False, nextitem=nextitem) for entry in records_of(report)]


def _untimed(record: Record) -> Record:
    return replace(record, metrics={name: value for name, value in record.metrics.items() if name not in SPEED})

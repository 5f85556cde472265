"""The pytest plugin: records as tests finish, in pytest-benchmark's JSON, and as tables at the end.

Inert unless a test asks for the `record` fixture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from deepcache.errors import DeepCacheError
from deepcache.results.record import Record, from_dict

_PROPERTY = "deepcache_record"
RECORDS = "records.jsonl"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deepcache")
    group.addoption(
        "--tables",
        metavar="DIR",
        type=Path,
        help=f"write the records as tests finish (DIR/{RECORDS}) and the tables at the end (Markdown, CSV, LaTeX)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Collector(config), "deepcache-collector")


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`record(experiment=..., row=..., settings={...}, metrics={...})`: what this test measured.

    Call it before the assertions, so that a failed row is kept too, with its outcome.
    """

    def keep(**fields: Any) -> None:
        request.node.user_properties.append((_PROPERTY, Record(**fields).as_dict()))

    return keep


class _Collector:
    """Gathers records from finished tests, of this process or of xdist's workers."""

    def __init__(self, config: pytest.Config) -> None:
        folder: Path | None = config.getoption("tables")
        self.folder = None if folder is None else config.invocation_params.dir / folder
        self.records: list[dict[str, Any]] = []
        self.writes = not hasattr(config, "workerinput")
        if self.folder is not None and self.writes:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise pytest.UsageError(f"--tables: cannot write to {self.folder}: {error}") from error

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for name, entry in report.user_properties:
            if name == _PROPERTY and isinstance(entry, dict):
                finished = {**entry, "outcome": report.outcome}
                self.records.append(finished)
                self._append(finished)

    def _append(self, entry: dict[str, Any]) -> None:
        if self.folder is None or not self.writes:
            return
        mode = "w" if len(self.records) == 1 else "a"  # the first record of a run begins a new file
        with open(self.folder / RECORDS, mode) as file:
            file.write(json.dumps(entry) + "\n")

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        output_json["deepcache"] = self.records

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, None, None]:
        yield
        if self.folder is None or not self.writes or not self.records:
            return
        terminalreporter.section("deepcache tables")
        try:
            from deepcache.results.tables import render

            written = render([from_dict(entry) for entry in self.records], self.folder)
        except (DeepCacheError, ImportError) as error:
            terminalreporter.write_line(str(error))
            return
        for path in written:
            if path.suffix == ".md":
                terminalreporter.write_line(path.read_text())
        terminalreporter.write_line("written: " + ", ".join(str(path) for path in written))

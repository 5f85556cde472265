"""Options of the benches, known wherever pytest starts, and pytest's own tester of plugins."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]  # legal in the root conftest alone


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deepcache benches")
    group.addoption("--num-samples", type=int, default=400, help="samples a row, for fidelity (default 400)")
    group.addoption("--num-steps", type=int, default=100, help="sampling steps of the uncached run (default 100)")
    group.addoption("--batch-size", type=int, default=50, help="images that are sampled together (default 50)")
    group.addoption("--rounds", type=int, default=3, help="timed rounds a row, cached and uncached (default 3)")
    group.addoption("--branches", type=_numbers, default=[0], help="branches to bench, e.g. 0,1,2 (default 0)")
    group.addoption("--schedulers", type=_words, default=["ddim"], help="ddim, plms, dpm-solver++ (default ddim)")
    group.addoption("--seeds", type=_numbers, default=[0], help="first seed of each block of samples (default 0)")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]

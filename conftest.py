"""Options of the benches, known wherever pytest starts, and pytest's own tester of plugins."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable

import pytest

pytest_plugins = ["pytester"]  # legal in the root conftest alone

SCHEDULERS = ("ddim", "plms", "dpm-solver++")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deepcache benches")
    add = group.addoption
    add("--num-samples", type=_whole(10), default=300, help="samples a row, for fidelity (default 300)")
    add("--num-steps", type=_whole(2), default=100, help="sampling steps of the uncached run (default 100)")
    add("--batch-size", type=_whole(1), default=50, help="images that are sampled together (default 50)")
    add("--rounds", type=_whole(1), default=3, help="timed rounds a row, cached and uncached (default 3)")
    add("--branches", type=_list(_whole(0)), default=[0], help="branches to bench, e.g. 0,1,2 (default 0)")
    add("--schedulers", type=_list(_scheduler), default=["ddim"], help=f"of {', '.join(SCHEDULERS)} (default ddim)")
    add("--seeds", type=_list(_whole(0)), default=[0], help="first seed of each block of samples (default 0)")


def _whole(at_least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < at_least:
            raise ArgumentTypeError(f"expected a whole number of at least {at_least}, got {text!r}")
        return int(text)

    return parse


def _list(parse: Callable[[str], object]) -> Callable[[str], list[object]]:
    return lambda text: [parse(word.strip()) for word in text.split(",")]


def _scheduler(text: str) -> str:
    if text not in SCHEDULERS:
        raise ArgumentTypeError(f"expected schedulers out of {', '.join(SCHEDULERS)}, got {text!r}")
    return text

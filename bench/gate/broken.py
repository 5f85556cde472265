"""This pytest plugin breaks the library, and the gate must notice (`-p bench.gate.broken --break zeros`).

zeros   every kept feature is replaced by zeros
stage   a shallow step runs one stage more than the branch asks for
slow    a shallow step takes a fifth longer
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import pytest

from bench.harness.altered import altered, with_shallow, zeroed
from deepcache.unets.family import CutUNet, Feature

SLOWER = 0.2


def _slowly(cut: CutUNet, feature: Feature, *args: Any, **kwargs: Any) -> Any:
    started = time.perf_counter()
    output = cut.shallow(feature, *args, **kwargs)
    until = time.perf_counter() + SLOWER * (time.perf_counter() - started)
    while time.perf_counter() < until:
        pass
    return output


BROKEN = {
    "zeros": lambda: with_shallow(zeroed),
    "stage": lambda: altered(lambda family, unet, branch: family.cut(unet, branch + 1)),
    "slow": lambda: with_shallow(_slowly),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--break", dest="broken", choices=[*BROKEN], help="what to break on purpose")


def pytest_configure(config: pytest.Config) -> None:
    if how := config.getoption("broken"):
        opened = ExitStack()
        opened.enter_context(BROKEN[how]())
        config.add_cleanup(opened.close)

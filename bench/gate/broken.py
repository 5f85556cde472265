"""A pytest plugin that breaks the library; the gate must notice (`-p bench.gate.broken --break zeros`).

zeros   every kept feature is replaced by zeros
stage   a shallow step runs one stage more than the branch asks for
slow    a shallow step takes a fifth longer
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deepcache.unets.diffusers import forward, views

SLOWER = 0.2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--break", dest="broken", choices=["zeros", "stage", "slow"], help="what to break on purpose")


def pytest_configure(config: pytest.Config) -> None:
    broken = config.getoption("broken")
    if broken == "zeros":
        _wrap(lambda shallow, unet, cut, feature, *a, **k: shallow(unet, cut, _zeros(feature), *a, **k))
    if broken == "slow":
        _wrap(_slowly)
    if broken == "stage":
        of = views.Cut.of
        deeper = staticmethod(lambda unet, branch: of(unet, branch + 1))
        views.Cut.of = deeper  # type: ignore[method-assign]


def _wrap(step: Callable[..., Any]) -> None:
    shallow = forward.shallow_forward

    def broken(*args: Any, **kwargs: Any) -> Any:
        return step(shallow, *args, **kwargs)

    forward.shallow_forward = broken


def _zeros(feature: Any) -> Any:
    return tuple(torch.zeros_like(part) for part in feature)


def _slowly(shallow: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    started = time.perf_counter()
    output = shallow(*args, **kwargs)
    until = time.perf_counter() + SLOWER * (time.perf_counter() - started)
    while time.perf_counter() < until:
        pass
    return output

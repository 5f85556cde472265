"""Fixtures of the benches: workloads, seed blocks, `measure`, and the options as parameters."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from measure import Measure
from protocols import PROTOCOLS
from workload import Workload

from deepcache import models
from deepcache.errors import DeepCacheError
from deepcache.metrics import reference as references
from deepcache.metrics.clip_score import load_clip
from deepcache.sampling import SCHEDULERS
from deepcache.stages import require_branch


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deepcache benches")
    add = group.addoption
    add("--num-samples", type=_whole(10), help=f"samples a row, for fidelity ({_own('num_samples')})")
    add("--num-steps", type=_whole(2), help=f"sampling steps of the uncached run ({_own('num_steps')})")
    add("--batch-size", type=_whole(1), help=f"images that are sampled together ({_own('batch_size')})")
    add("--rounds", type=_whole(1), default=2, help="timed rounds a row, cached and uncached (default 2)")
    add("--branches", type=_list(_whole(0)), default=[0], help="branches of Table 1, e.g. 0,1,2 (default 0)")
    add("--schedulers", type=_list(_scheduler), default=["ddim"], help=f"of Table 1: {', '.join(SCHEDULERS)} (ddim)")
    add("--seeds", type=_list(_whole(0)), default=[0], help="first seed of each block of samples (default 0)")
    add("--prompts", type=Path, metavar="FILE", help="a prompt a line, for the workflows (default: 20 captions)")
    add("--images-dir", type=Path, metavar="DIR", help="where the workflows' images go (default: nowhere)")


def pytest_configure(config: pytest.Config) -> None:
    """Workers of xdist share the machine: a GPU each where there are several, and the cores among them."""
    worker = getattr(config, "workerinput", None)
    if worker is None:
        return
    number, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    if len(visible) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]


def _own(name: str) -> str:
    return "; ".join(f"{model} {getattr(PROTOCOLS[model], name)}" for model in ("mini-ldm", "mini-ddpm", "mini-sd"))


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, option in (("branch", "branches"), ("scheduler", "schedulers"), ("first_seed", "seeds")):
        if name in metafunc.fixturenames:
            values = metafunc.config.getoption(option)
            metafunc.parametrize(name, values, scope="session", ids=lambda value, name=name: f"{name}={value}")


@pytest.fixture(autouse=True)
def progress_is_seen(pytestconfig: pytest.Config) -> Iterator[None]:
    """Progress bars reach the terminal, which pytest would capture."""
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        yield


@pytest.fixture(scope="session")
def workload(pytestconfig: pytest.Config) -> Callable[..., Workload]:
    """`workload("mini-sd")`, loaded once a session, as its protocol and the options say."""
    extractor = models.load_extractor()
    asked = {name: pytestconfig.getoption(name) for name in ("num_samples", "num_steps", "batch_size")}
    changes = {name: value for name, value in asked.items() if value}

    @cache
    def clip() -> Any:
        return load_clip("mini-clip")

    @cache
    def load(name: str) -> Workload:
        protocol = replace(PROTOCOLS[name], **changes)
        return Workload(name, models.load(name), extractor, clip() if protocol.is_prompted else None, protocol)

    return load


@pytest.fixture(scope="session")
def mini_ldm(workload: Callable[..., Workload], pytestconfig: pytest.Config) -> Workload:
    """LDM-4-G's stand-in, guidance 1.5 as in the paper's Table 1."""
    found = workload("mini-ldm")
    try:
        for branch in pytestconfig.getoption("branches"):
            require_branch(branch, found.cost.num_branches)
    except DeepCacheError as error:
        pytest.exit(str(error), returncode=2)
    return found


@pytest.fixture(scope="session")
def mini_ddpm(workload: Callable[..., Workload]) -> Workload:
    """DDPM's stand-in."""
    return workload("mini-ddpm")


@pytest.fixture(scope="session")
def mini_sd(workload: Callable[..., Workload]) -> Workload:
    """Stable Diffusion's stand-in."""
    return workload("mini-sd")


@pytest.fixture(scope="session")
def reference() -> references.Reference:
    """Statistics of the real images."""
    return references.load()


@pytest.fixture
def measure(
    benchmark: Any, record: Callable[..., None], reference: references.Reference, pytestconfig: pytest.Config
) -> Measure:
    """Samples a row and its uncached counterpart, times both, keeps the record."""
    return Measure(benchmark, record, reference, pytestconfig.getoption("rounds"))

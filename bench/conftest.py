"""Fixtures of the benches: workloads, seed blocks, and the options as parameters."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator

import pytest
from workload import SCHEDULERS, Workload

from deepcache import models
from deepcache.errors import DeepCacheError
from deepcache.metrics import reference as references
from deepcache.stages import require_branch


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
def mini_ldm(pytestconfig: pytest.Config) -> Workload:
    """LDM-4-G's stand-in, guidance 1.5 as in the paper's Table 1."""
    workload = Workload(
        models.load("mini-ldm"),
        models.load_extractor(),
        model="mini-ldm",
        guidance_scale=1.5,
        batch_size=pytestconfig.getoption("batch_size"),
    )
    try:
        for branch in pytestconfig.getoption("branches"):
            require_branch(branch, workload.cost().num_branches)
    except DeepCacheError as error:
        pytest.exit(str(error), returncode=2)
    return workload


@pytest.fixture(scope="session")
def reference() -> references.Reference:
    """Statistics of the real images."""
    return references.load()


@pytest.fixture(scope="session")
def num_steps(pytestconfig: pytest.Config) -> int:
    """Sampling steps of the uncached run."""
    return int(pytestconfig.getoption("num_steps"))


@pytest.fixture(scope="session")
def rounds(pytestconfig: pytest.Config) -> int:
    """Timed rounds a row."""
    return int(pytestconfig.getoption("rounds"))


@pytest.fixture
def seeds(first_seed: int, pytestconfig: pytest.Config) -> range:
    """The block of seeds to sample."""
    return range(first_seed, first_seed + int(pytestconfig.getoption("num_samples")))

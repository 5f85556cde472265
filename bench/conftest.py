"""Fixtures of the benches: workloads, seed blocks, and the options as parameters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from workload import Workload

from deepcache import models
from deepcache.errors import DeepCacheError
from deepcache.macs import require_branch
from deepcache.metrics import reference as references


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

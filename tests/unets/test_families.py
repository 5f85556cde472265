"""U-Nets of other packages are cut right, and docs/support.md tells where; `tox -e families` installs the packages.

The oracles are the U-Net itself, bit for bit, and the U-Net with a hook at the cut (`tests/unets/test_watched.py`).
"""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest
import torch
from torch import Tensor

import deepcache
from deepcache.unets.watched.steps import CutWatchedUNet, cuts_for
from tests.families import PACKAGES, small
from tests.support import DOCUMENT
from tests.unets.test_watched import with_feature

MODULES = {
    "denoising-diffusion-pytorch": "denoising_diffusion_pytorch",
    "k-diffusion": "k_diffusion",
}
pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages
MOST_SECONDS, MOST_MIB = 3.0, 200.0  # for finding the cuts of a U-Net of published size


@pytest.fixture(params=PACKAGES)
def name(request: Any) -> str:
    package = PACKAGES[request.param].package
    pytest.importorskip(MODULES.get(package, package), reason="tox -e families installs it")
    return request.param


def test_every_cut_equals_its_oracle(name: str) -> None:
    unet, call = small(name)
    other = (call[0].flip(0) * 0.5, *call[1:])
    cuts = cuts_for(unet, call, {})
    assert cuts
    for branch, cut in enumerate(cuts):
        steps = CutWatchedUNet(unet, branch)
        steps.full(*call)
        full, (feature,) = steps.full(*call)
        assert torch.equal(full, unet(*call))
        assert torch.equal(steps.shallow((feature,), *call), full)
        oracle = with_feature(unet, cut, feature, *other)
        assert torch.equal(steps.shallow((feature,), *other), oracle)
        assert not torch.equal(oracle, unet(*other))


def test_interval_one_is_uncached_and_two_graphs_serve_longer_intervals(name: str) -> None:
    torch._dynamo.reset()
    unet, call = small(name)
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    def sample(cache: Any = None) -> Tensor:
        x = call[0]
        for step in range(6):
            with cache.step(step):
                x = x - 0.1 * unet(x, *call[1:])
        return x

    def uncached() -> Tensor:
        x = call[0]
        for _ in range(6):
            x = x - 0.1 * unet(x, *call[1:])
        return x

    expected = uncached()
    with deepcache.cached(unet, interval=1) as cache:
        assert torch.equal(sample(cache), expected)
    with deepcache.cached(unet, interval=3, order=0) as cache:
        eager = sample(cache)
        assert cache.generations[0].full_steps == (0, 3)
        assert cache.generations[0].macs > 0
        assert not torch.equal(eager, expected)
    with deepcache.cached(unet, interval=3, order=0, compile={"backend": backend}) as cache:
        assert torch.equal(sample(cache), eager)
    assert len(graphs) == 2


def test_cuts_of_the_published_size_are_found_fast_and_as_the_page_says(name: str) -> None:
    with torch.device("meta"):
        unet, call = PACKAGES[name].published()
    deepcache.cuts(*small_of(name))  # imports what it needs
    tracemalloc.start()
    started = time.process_time()
    found = deepcache.cuts(unet, *call)
    seconds, (_, most) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < MOST_MIB * 2**20
    assert seconds < 10 * MOST_SECONDS  # measured by the benches; this only finds what takes far too long
    package = PACKAGES[name]
    line = (
        f"| {name} | {package.package} {package.version} | {type(unet).__name__} | {len(found)} | "
        f"{100 * found.saved[0]:.0f} % | {package.steps} |"
    )
    assert line in DOCUMENT.read_text()


def small_of(name: str) -> tuple[Any, ...]:
    unet, call = small(name)
    return unet, *call

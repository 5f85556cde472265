"""U-Nets of other packages are cut right, and docs/support.md tells where; `tox -e families` installs the packages.

The oracles are the U-Net itself, bit for bit, and the U-Net with a hook at the cut (`tests/unets/test_watched.py`).
"""

from __future__ import annotations

import re
import time
import tracemalloc
from typing import Any

import pytest
import torch
from torch import Tensor

import deepcache
from bench.harness.packages import PACKAGES, require, seeded
from deepcache.unets.watched.steps import CutWatchedUNet, cuts_for
from tests.support import DOCUMENT, OTHER_PACKAGES, section
from tests.unets.test_watched import with_feature

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages
MOST_SECONDS, MOST_MIB = 3.0, 200.0  # for finding the cuts of a U-Net of published size
SLOW_MACHINE = 5  # times as long as that is still right

TEXT = """\
These are watched: [docs/unets.md](unets.md) tells how. For each, at a small size, a full step is the U-Net bit for bit,
and at every branch a shallow step is the U-Net in which a hook gives the feature; at branch 0 compiled, too. The shares
are those of the published sizes. `tox -e families` installs the packages and runs this.
"""


EXAMPLES = re.findall(r"```python\n(.*?)```", (DOCUMENT.parent / "unets.md").read_text(), re.DOTALL)


@pytest.fixture(params=PACKAGES)
def name(request: Any) -> str:
    require(request.param)
    return request.param


def test_every_cut_equals_its_oracle(name: str) -> None:
    unet, call = seeded(PACKAGES[name].small)
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
    unet, call = seeded(PACKAGES[name].small)
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


def test_cuts_of_the_published_size_are_found_fast(name: str) -> None:
    with torch.device("meta"):
        unet, call = PACKAGES[name].published()
    small_unet, small_call = seeded(PACKAGES[name].small)
    deepcache.cuts(small_unet, *small_call)  # imports what it needs
    tracemalloc.start()
    deepcache.cuts(unet, *call)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < MOST_MIB * 2**20
    started = time.process_time()
    deepcache.cuts(unet, *call)
    assert time.process_time() - started < SLOW_MACHINE * MOST_SECONDS


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_of_the_documentation_caches(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in PACKAGES:
        require(each)
        PACKAGES[each].small()  # imports it
    caches: list[Any] = []

    def cached(*args: Any, **kwargs: Any) -> Any:
        caches.append(entered(*args, **kwargs))
        return caches[-1]

    entered = deepcache.cached
    monkeypatch.setattr(deepcache, "cached", cached)
    exec(example, {"__name__": "example"})
    (generation,) = caches[0].generations
    assert 0 < len(generation.full_steps) < generation.num_steps


def test_page_tells_the_cuts_of_published_sizes(file_regression: Any) -> None:
    for each in PACKAGES:
        require(each)
    page = DOCUMENT.read_text()
    file_regression.check(page.replace(section(OTHER_PACKAGES), _section()), extension=".md", fullpath=DOCUMENT)


def _section() -> str:
    """Return the section of docs/support.md on these U-Nets, of their published sizes."""
    head = ("U-Net", "package", "class", "branches", "saved by a shallow step at branch 0", "steps by default")
    lines = [f"| {' | '.join(head)} |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for name, package in PACKAGES.items():
        with torch.device("meta"):
            unet, call = package.published()
        found = deepcache.cuts(unet, *call)
        cells = (
            name,
            f"{package.package} {package.version}",
            f"`{type(unet).__name__}`",
            str(len(found)),
            f"{found.saved[0]:.1%} of the MACs",
            str(package.steps),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return f"## {OTHER_PACKAGES}\n\n{TEXT}\n" + "\n".join(lines) + "\n"

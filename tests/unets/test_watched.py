"""U-Nets of classes that the library does not know: a call is watched, and cut where a module can be left out.

The oracle of a shallow step is the network itself with a hook that puts the feature in the place of the gate's result,
bit for bit; that of a full step is the network.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deepcache import DeepCacheError, UnsupportedUNetError, cached
from deepcache.costs.macs import EVERYTHING, cost
from deepcache.unets.diffusers.forward import CutDiffusersUNet
from deepcache.unets.watched.cuts import Cut
from deepcache.unets.watched.steps import CutWatchedUNet, cuts_for
from tests import foreign, problems
from tests.foreign import NAMES, network, sample, tensor_of

TIMESTEPS = torch.tensor([900, 700, 500, 300, 100])
LAST = torch.tensor(500.0)


def with_feature(model: nn.Module, cut: Cut, feature: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The oracle: run all modules, and put a feature in the place of what the gate returns."""

    def put(_module: nn.Module, _args: Any, output: Any) -> Any:
        leaves, spec = pytree.tree_flatten(output)
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        leaves[places[cut.leaf]] = feature.clone()
        return pytree.tree_unflatten(leaves, spec)

    with model.get_submodule(cut.gate).register_forward_hook(put):
        return model(*args, **kwargs)


def loop(model: nn.Module, name: str, timesteps: Tensor = TIMESTEPS, seed: int = 0) -> Tensor:
    x = sample(name, seed=seed)
    for t in timesteps:
        x = x - 0.1 * tensor_of(model(x, t))
    return x


@pytest.mark.parametrize("name", NAMES)
def test_full_and_shallow_steps_equal_the_network_at_every_cut(name: str) -> None:
    model, x, other = network(name), sample(name), sample(name, seed=1)
    cuts = cuts_for(model, (x, LAST), {})
    assert len(cuts) >= 1
    assert cuts[0].saved > 0.2
    for branch, cut in enumerate(cuts):
        steps = CutWatchedUNet(model, branch)
        expected = model(x, LAST)
        steps.full(x, LAST)  # the first call proves the cut
        full, feature = steps.full(x, LAST)
        kept = feature[0].clone()
        assert torch.equal(tensor_of(full), tensor_of(expected))
        assert torch.equal(tensor_of(steps.shallow(feature, x, LAST)), tensor_of(expected))
        oracle = with_feature(model, cut, kept, other, LAST / 2)
        assert torch.equal(tensor_of(steps.shallow(feature, other, LAST / 2)), tensor_of(oracle))
        assert torch.equal(feature[0], kept)
        assert not torch.equal(tensor_of(oracle), tensor_of(model(other, LAST / 2)))


@pytest.mark.parametrize("name", ["ddpm", "sd-1.5", "sdxl", "animatediff", "svd", "ddpm-no-mid"])
def test_diffusers_classes_are_cut_at_the_branches_that_are_known(name: str) -> None:
    model, (args, kwargs) = problems.shared(name), problems.inputs(name)
    other = (problems.inputs(name, seed=1)[0][0], *args[1:])
    for branch in range(min(3, problems.num_branches(name))):
        found = []
        for steps in (CutDiffusersUNet(model, branch), CutWatchedUNet(model, branch)):
            output, feature = steps.full(*args, **kwargs)
            found.append((output[0], steps.shallow(feature, *other, **kwargs)[0]))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1]), f"branch {branch}"


@pytest.mark.parametrize("how", [None, {"backend": "eager"}], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", NAMES)
def test_interval_one_is_uncached(name: str, how: Any) -> None:
    model = network(name)
    expected = loop(model, name)
    with cached(model, interval=1, compile=how):
        assert torch.equal(loop(model, name), expected)
    assert torch.equal(loop(model, name), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_shallow_step_runs_no_dead_module_and_costs_what_is_left(name: str) -> None:
    model, x = network(name), sample(name)
    cut = cuts_for(model, (x, LAST), {})[0]
    ran: list[str] = []
    for path in (cut.gate, *cut.dead):
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: ran.append(path))
    with cached(model, interval=5) as cache:
        loop(model, name)
    assert sorted(ran) == sorted((cut.gate, *cut.dead))  # once each, in the full step
    assert cache.generations[0].full_steps == (0,)
    found = cost(model, x, LAST)
    assert found.shallow(0, EVERYTHING) < found.full(EVERYTHING)
    assert cache.generations[0].macs == round((found.full() + 4 * found.shallow(0)) / 5)


@pytest.mark.parametrize("name", NAMES)
def test_two_graphs_serve_all_steps_and_equal_eager_steps(name: str) -> None:
    torch._dynamo.reset()
    model, graphs = network(name), []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    with cached(model, interval=2) as eager:
        expected = loop(model, name)
    assert eager.generations[0].full_steps == (0, 2, 4)
    with cached(model, interval=2, compile={"backend": backend}):
        assert [torch.equal(loop(model, name), expected) for _ in range(2)] == [True, True]
    assert len(graphs) == 2


def test_threads_equal_one_after_the_other() -> None:
    model = network("three lists")

    def image(seed: int) -> Tensor:
        with cached(model, interval=2):
            return loop(model, "three lists", TIMESTEPS.clone(), seed)

    expected = [image(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(image, range(4)), expected))


def test_other_shapes_and_options_are_watched_anew() -> None:
    model, x = network("three lists"), sample("three lists")
    control = [torch.full_like(skip, 0.1) for skip in skips_of(model, x)]
    with cached(model, interval=2) as cache:
        for given in (x, x[:1], sample("three lists").repeat(1, 1, 2, 2)):
            cache.reset()
            assert torch.equal(model(given, TIMESTEPS[0]), network("three lists")(given, TIMESTEPS[0]))
    expected = model(x, LAST, control=control)
    steps = CutWatchedUNet(model, 0)
    steps.full(x, LAST)
    full, feature = steps.full(x, LAST, control=control)
    assert torch.equal(full, expected)
    assert torch.equal(steps.shallow(feature, x, LAST, control=control), expected)
    assert not torch.equal(expected, model(x, LAST))


def skips_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    with torch.no_grad():
        handles = [each.register_forward_hook(lambda *given: found.append(given[2])) for each in model.inputs]
        model(x, LAST)
    for handle in handles:
        handle.remove()
    return found


def test_weights_and_hooks_that_come_later_are_seen() -> None:
    model, name = network("three lists"), "three lists"
    with cached(model, interval=2, order=0):
        before = loop(model, name)
        model.load_state_dict({key: 0.5 * value for key, value in model.state_dict().items()}, assign=True)
        after = loop(model, name)
    again = network(name)
    again.load_state_dict(model.state_dict())
    with cached(again, interval=2, order=0):
        assert torch.equal(after, loop(again, name))
    assert not torch.equal(before, after)
    with model.outputs[-1].register_forward_hook(lambda *given: given[2] + 1), cached(model, interval=2, order=0):
        assert not torch.equal(loop(model, name), after)


class Chain(nn.Module):
    """No skip connection: there is nothing to cut."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Conv2d(3, 3, 3, 1, 1) for _ in range(3)))

    def forward(self, x: Tensor, _t: Tensor) -> Tensor:
        return self.blocks(x)


class Choosing(foreign.Tuples):
    """Takes another path by the values of its input."""

    def forward(self, x: Tensor, time: Tensor) -> Any:
        return super().forward(x if time.max() > 400 else -x, time)


class Numbered(foreign.Tuples):
    """Takes another path by a number: from step 600 on its middle runs once more."""

    def forward(self, x: Tensor, time: float) -> Any:
        if time < 600:
            self.mid(x.new_zeros(len(x), foreign.WIDTHS[1], 2, 2), foreign.embedding(time, len(x)))
        return super().forward(x, time)


class Rewriting(nn.Module):
    """Writes in place into what its deep module returned, after another module has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 5, 1, 2)
        self.read, self.up = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor, _t: Tensor) -> Tensor:
        skip = self.down(x)
        deep = self.deep(skip)
        read = self.read(deep)
        return self.up(torch.cat([read + deep.tanh_(), skip], dim=1))


class Remembering(foreign.Tuples):
    """Reads, near its output, what its middle kept in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.mid = Keeping(*self.mid.conv.weight.shape[:2])

    def forward(self, x: Tensor, time: Tensor) -> Any:
        (output,) = super().forward(x, time)
        return (output + self.mid.kept,)


class Keeping(foreign.Block):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        output = super().forward(x, emb)
        self.kept = output.mean()
        return output


class Secretive(Remembering):
    """The same as a number, which no operation tells."""

    def forward(self, x: Tensor, time: Tensor) -> Any:
        (output,) = foreign.Tuples.forward(self, x, time)
        return (output + float(self.mid.kept),)


class Twice(nn.Module):
    """Uses one module twice: once alive, and once dead."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep, self.up = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor, _t: Tensor) -> Tensor:
        skip = self.deep(self.down(x))
        return self.up(torch.cat([self.deep(skip), skip], dim=1))


@pytest.mark.parametrize("kind", [Rewriting, Remembering])
def test_what_writes_into_features_or_keeps_them_is_cut_right(kind: Any) -> None:
    model = kind().eval().requires_grad_(requires_grad=False)
    x, other = sample("three lists"), sample("three lists", seed=1)
    cuts = cuts_for(model, (x, LAST), {})
    assert cuts
    for branch, cut in enumerate(cuts):
        steps = CutWatchedUNet(model, branch)
        steps.full(x, LAST)
        full, feature = steps.full(x, LAST)
        kept = feature[0].clone()
        assert torch.equal(tensor_of(full), tensor_of(model(x, LAST)))
        oracle = tensor_of(with_feature(model, cut, kept, other, LAST))
        assert [torch.equal(tensor_of(steps.shallow(feature, other, LAST)), oracle) for _ in range(2)] == [True, True]


def test_a_path_that_follows_a_number_is_refused_where_it_parts() -> None:
    model, x = Numbered().eval().requires_grad_(requires_grad=False), sample("tuples")
    with cached(model, interval=4, num_steps=4):
        for t in (900.0, 700.0):
            model(x, t)
        with pytest.raises(UnsupportedUNetError, match="took another path"):
            model(x, 500.0)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Chain, "expected a U-Net with skip connections"),
        (Twice, "expected a U-Net with skip connections"),
        (Choosing, "depend on the values of its inputs"),
        (Secretive, "depend on the values of its inputs"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name_and_branch_minus_one_is_left(kind: Any, says: str) -> None:
    model = kind().eval().requires_grad_(requires_grad=False)
    expected = model(torch.ones(1, 3, 8, 8), TIMESTEPS[0])
    with cached(model, interval=2), pytest.raises(UnsupportedUNetError, match=says):
        model(torch.ones(1, 3, 8, 8), TIMESTEPS[0])
    with cached(model, interval=2, branch=-1):
        for t in TIMESTEPS[:2]:
            assert torch.equal(tensor_of(model(torch.ones(1, 3, 8, 8), t)), tensor_of(expected))


def test_a_branch_that_is_not_there_is_named_at_the_first_call() -> None:
    model = network("three lists")
    with cached(model, interval=2, branch=9), pytest.raises(DeepCacheError, match=r"expected branch 0\.\.\d"):
        model(sample("three lists"), TIMESTEPS[0])

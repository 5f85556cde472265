"""U-Nets of classes that the library does not know: a call is watched, and cut where a module can be left out.

The oracle of a shallow step is the network itself with a hook that puts the feature in the place of the gate's result,
bit for bit; that of a full step is the network.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from enum import Enum
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

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
    # Twice each, in the full step: in the network itself, and in the view that it is compared with.
    assert sorted(ran) == sorted(2 * (cut.gate, *cut.dead))
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


class Small(nn.Module):
    """The base of the networks below: a skip around four layers, which `deep` runs."""

    def __init__(self) -> None:
        super().__init__()
        self.begin, self.down = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.mid, self.late = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.up: nn.Module = nn.ConvTranspose2d(4, 4, 2, 2)
        self.end = nn.Conv2d(8, 3, 3, 1, 1)

    def deep(self, skip: Tensor) -> Tensor:
        return self.late(self.mid(self.down(skip).tanh()).tanh()).tanh()

    def forward(self, x: Tensor, time: Any, **options: Any) -> Tensor:
        skip = self.begin(x) * (1 + time / 1000)
        return self.end(torch.cat([self.after(self.up(self.deep(skip)), **options), skip], dim=1))

    def after(self, feature: Tensor) -> Tensor:
        return feature


class SelfConditioned(Small):
    """Adds a share of its last output."""

    last: Tensor | None = None

    def forward(self, x: Tensor, time: Any) -> Tensor:
        output = super().forward(x, time) + (0 if self.last is None else 0.1 * self.last)
        self.last = output
        return output


class Telling(Small):
    """Sets an attribute of its gate, which the gate reads."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Told(4, 4, 2, 2)

    def forward(self, x: Tensor, time: Any) -> Tensor:
        self.up.time = time
        return super().forward(x, time)


class Told(nn.ConvTranspose2d):
    time: Any = 0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.time / 500)


class Halved(nn.ConvTranspose2d):
    """Has a call of its own around `forward`."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) / 2


class Calling(Small):
    def __init__(self) -> None:
        super().__init__()
        self.up = Halved(4, 4, 2, 2)


class Listed(Small):
    """Knows its gate by what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.special = [self.up]

    def after(self, feature: Tensor) -> Tensor:
        return 2 * feature if self.up in self.special else feature


class Beside(Small):
    """Calls deep modules through a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = [self.down, self.mid, self.late]

    def deep(self, skip: Tensor) -> Tensor:
        for module in self.chain:
            skip = module(skip).tanh()
        return skip


def patched() -> Small:
    """A network of which another package has replaced a method of a block around the gate."""
    model = Small()
    inner = nn.Sequential(model.up)
    model.up = inner
    vars(inner)["forward"] = lambda x: 2 * nn.Sequential.forward(inner, x)
    return model


def frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(requires_grad=False)


X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (SelfConditioned, "sets its attribute last in each call"),
        (Telling, "sets its attribute up.time in each call"),
        (Calling, "gives something else"),
        (Listed, "gives something else"),
        (Beside, "called past the network's own attributes"),
    ],
)
def test_network_that_a_view_would_change_is_refused(make: Any, says: str) -> None:
    model = frozen(make())
    with cached(model, interval=1), pytest.raises(UnsupportedUNetError, match=says):
        model(X, TIMESTEPS[0])


def test_method_that_was_replaced_is_kept_or_refused() -> None:
    model = frozen(patched())
    expected = model(X, LAST)
    for branch in range(len(cuts_for(model, (X, LAST), {}))):
        steps = CutWatchedUNet(model, branch)
        try:
            steps.full(X, LAST)
            full, _ = steps.full(X, LAST)
        except UnsupportedUNetError:
            continue
        assert torch.equal(full, expected)


class Conditioned(Small):
    """Its condition enters near the output as well."""

    def __init__(self) -> None:
        super().__init__()
        self.film = nn.Linear(5, 3)

    def forward(self, x: Tensor, time: Any, condition: Tensor) -> Tensor:
        return super().forward(x, time) * (1 + self.film(condition)[..., None, None])


def test_the_sample_is_found_wherever_it_stands() -> None:
    model, condition = frozen(Conditioned()), torch.ones(2, 5)
    ways: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((X, LAST, condition), {}),
        ((), {"condition": condition, "time": LAST, "x": X}),
    ]
    assert [cuts_for(model, *way)[0].gate for way in ways] == ["up", "up"]

    class Swapped(Small):
        def forward(self, time: Tensor, x: Tensor) -> Tensor:
            return super().forward(x, time)

    swapped = frozen(Swapped())
    with cached(swapped, interval=2, num_steps=2) as cache:
        for time in (900.0, 700.0):
            swapped(torch.tensor(time), X)
    assert cache.generations[0].macs > 0


def test_a_residual_around_the_network_is_no_skip() -> None:
    class Residual(Small):
        def forward(self, x: Tensor, time: Any) -> Tensor:
            return x + super().forward(x, time)

    model = frozen(Residual())
    gates = [cut.gate for cut in cuts_for(model, (X, LAST), {})]
    assert gates[0] == "up"


class Deciding(Small):
    """By an option or a number, reads a deep feature beside the gate."""

    def forward(self, x: Tensor, time: Any, option: Any = None) -> Tensor:
        skip = self.begin(x)
        deep = self.deep(skip)
        output = self.end(torch.cat([self.up(deep), skip], dim=1))
        return output + deep.mean() if self.reads(time, option) else output

    def reads(self, time: Any, option: Any) -> bool:
        return float(time) < 500 if option is None else option is Choice.MID


class Choice(Enum):
    NONE = 0
    MID = 1


def test_a_deep_feature_that_a_number_lets_through_is_seen_at_once() -> None:
    model = frozen(Deciding())
    with cached(model, interval=4, num_steps=4):
        assert model(X, 900.0).isfinite().all()
        assert model(X, 700.0).isfinite().all()
        assert model(X, 400.0).isnan().all()


def test_an_option_of_another_value_is_watched_anew() -> None:
    model = frozen(Deciding())
    with cached(model, interval=4, num_steps=4, order=0):
        model(X, 900.0, Choice.NONE)
        assert torch.equal(model(X, 700.0, Choice.MID), frozen_twin(model)(X, 700.0, Choice.MID))  # a full step


def frozen_twin(model: nn.Module) -> nn.Module:
    twin = type(model)()
    twin.load_state_dict(model.state_dict())
    return frozen(twin)


@pytest.mark.parametrize("read", [lambda time: time.tolist(), lambda time: float(time.numpy())])
def test_a_value_that_goes_to_python_is_noticed(read: Any) -> None:
    class Reading(Deciding):
        def reads(self, time: Any, _option: Any) -> bool:
            return read(time) < 500

    model = frozen(Reading())
    with cached(model, interval=2), pytest.raises(UnsupportedUNetError, match="depend on the values"):
        model(X, TIMESTEPS[0])


class Scaling(Small):
    """Writes into the gate's result where an option says so."""

    def after(self, feature: Tensor, scale: float = 1.0) -> Tensor:
        return feature if scale == 1.0 else feature.mul_(scale)


class Working(Small):
    """Its gate returns the same memory at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Space(4, 4, 2, 2)


class Space(nn.ConvTranspose2d):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("space", torch.zeros(2, 4, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.space.copy_(super().forward(x))


def test_a_feature_that_is_written_into_later_stays_what_it_was() -> None:
    model = frozen(Scaling())
    steps = CutWatchedUNet(model, 0)
    steps.full(X, LAST, scale=1.0)
    full, feature = steps.full(X, LAST, scale=1.5)
    assert [torch.equal(steps.shallow(feature, X, LAST, scale=1.5), full) for _ in range(3)] == [True] * 3
    working = frozen(Working())
    steps = CutWatchedUNet(working, 0)
    kept = [steps.full(x, LAST)[1][0] for x in (X, -X)]
    assert not torch.equal(*kept)


class Counted(Small):
    """Its root has a parameter, its middle runs several times, and it has an attention by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.ones(1, 4, 1, 1))

    def deep(self, skip: Tensor) -> Tensor:
        hidden = self.down(skip * self.place)
        for _ in range(3):
            hidden = self.mid(hidden).tanh()
        flat = hidden.flatten(2)
        scores = torch.einsum("b c i, b c j -> b i j", flat, flat).softmax(-1)
        return torch.einsum("bij,bcj->bci", scores, flat).reshape(hidden.shape)


def test_macs_of_any_class_are_half_of_torchs_flops() -> None:  # independent library
    model = frozen(Counted())
    with FlopCounterMode(display=False) as counter:
        model(X[:1], LAST)
    found = cost(model, X[:1], LAST)
    assert 2 * sum(stage.products + stage.attention for stage in found.stages) == counter.get_total_flops()


def test_random_numbers_are_those_of_an_uncached_loop() -> None:
    class Noisy(Small):
        def deep(self, skip: Tensor) -> Tensor:
            return super().deep(skip) + torch.randn(2, 4, 4, 4)

    model = frozen(Noisy())
    torch.manual_seed(0)
    expected = [model(X, time) for time in TIMESTEPS], torch.rand(1)
    torch.manual_seed(0)
    with cached(model, interval=1):
        found = [model(X, time) for time in TIMESTEPS], torch.rand(1)
    assert all(map(torch.equal, (*expected[0], expected[1]), (*found[0], found[1])))


def test_random_numbers_of_others_are_not_given_out_again() -> None:
    """A network that draws none does not set the generator, which other threads may use meanwhile."""

    class Drawing(Small):
        def forward(self, x: Tensor, time: Any) -> Tensor:
            with ThreadPoolExecutor(1) as pool:  # another thread
                draws.append(pool.submit(torch.rand, 1).result())
            return super().forward(x, time)

    draws: list[Tensor] = []
    model = frozen(Drawing())
    CutWatchedUNet(model, 0).full(X, LAST)
    assert len({float(each) for each in draws}) == len(draws) > 2


def test_a_proof_in_inference_mode_serves_calls_with_gradients() -> None:
    model = Small().eval()
    steps = CutWatchedUNet(model, 0)
    with torch.inference_mode():
        steps.full(X.clone(), LAST.clone())
    full, feature = steps.full(X, LAST)
    steps.shallow(feature, X, LAST).sum().backward()
    assert model.begin.weight.grad is not None
    assert full.requires_grad


def test_steps_are_told_by_blocks() -> None:
    model = frozen(Small())

    def sample(step: Any, calls: int = 1) -> Tensor:
        x = X
        for number in range(5):
            with step(number):
                for _ in range(calls):
                    x = x - 0.1 * model(x, 900.0 - 100 * number)
        return x

    uncached = sample(lambda _: nullcontext())
    with cached(model, interval=1) as cache:
        assert torch.equal(sample(cache.step), uncached)
        assert torch.equal(sample(cache.step), uncached)
        assert [each.num_steps for each in cache.generations] == [5, 5]
    with cached(model, interval=2, calls_per_step=2) as cache:
        sample(cache.step, calls=2)
        assert cache.generations[0].full_steps == (0, 2, 4)


@pytest.mark.parametrize("numbers", [(1,), (0, 2), (0, 1, 1), (0, 0)])
def test_steps_out_of_turn_are_refused(numbers: tuple[int, ...]) -> None:
    model = frozen(Small())
    with cached(model, interval=2) as cache:
        for number in numbers[:-1]:
            with cache.step(number):
                model(X, 900.0)
        with pytest.raises(DeepCacheError, match=r"cache\.step"), cache.step(numbers[-1]):
            model(X, 900.0)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")  # of torch
def test_a_scripted_network_is_refused_by_name() -> None:
    scripted = torch.jit.trace(frozen(Small()), (X, LAST))
    with pytest.raises(UnsupportedUNetError, match="expected a U-Net of Python code"):
        cached(scripted, interval=2, branch=-1)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=["torch", "python"]
)
def test_memory_that_runs_out_within_the_proof_is_said_as_such(error: Exception) -> None:
    """A smaller batch may do, so that it must not become a network that cannot be cut."""
    model, calls = frozen(Small()), []
    inner = next(module for module in model.modules() if not [*module.children()])

    def fail(*_: Any) -> None:
        calls.append(inner)
        if len(calls) > 2:  # after the watched call and the U-Net's own, in the view's
            raise error

    with inner.register_forward_hook(fail), cached(model, interval=2, num_steps=4), pytest.raises(type(error)):
        model(X, 900.0)


def test_a_network_with_a_part_named_transformer_is_cached_as_a_whole() -> None:
    model = frozen(Small())
    model.transformer = torch.nn.Linear(2, 2)
    with cached(model, interval=2, num_steps=2, branch=-1) as cache:
        model(X, 900.0)
        model(X, 800.0)
    assert cache.generations[-1].full_steps == (0,)


class SequenceFirst(nn.Module):
    """Its deep feature begins with the sequence, and only then has the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.down, self.up = (
            nn.Conv1d(3, 8, 3, padding=1),
            nn.Conv1d(8, 8, 4, 2, 1),
            nn.Upsample(scale_factor=2),
        )
        self.middle, self.out = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 8)), nn.Conv1d(16, 3, 1)

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        high = self.stem(x + 0.001 * t)
        deep = self.middle(self.down(high).permute(2, 0, 1))
        return self.out(torch.cat([high, self.up(deep.permute(1, 2, 0))], dim=1))


@pytest.mark.parametrize("length", [10, 16])
def test_halves_are_not_looked_for_in_a_feature_that_does_not_begin_with_the_batch(length: int) -> None:
    """A batch of guidance: each sample's output is what the sample has alone, whatever the feature's shape."""
    model = frozen(SequenceFirst())
    x = torch.randn(1, 3, length, generator=torch.Generator().manual_seed(1))

    def outputs(sample: Tensor) -> Tensor:
        with cached(model, interval=2, num_steps=8):
            return torch.stack([model(sample, 900.0 - 100 * step) for step in range(8)])

    assert cuts_for(model, (x, 900.0), {})[0].gate in {"middle", "middle.2"}
    both = outputs(torch.cat([x, x]))
    assert torch.isfinite(both).all()
    torch.testing.assert_close(both[:, 0], both[:, 1])

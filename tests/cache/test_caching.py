"""Laws of `cached`, bit for bit. The oracle is the uncached U-Net, or the kernel called by hand."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from deepcache import Cache, CachePlan, DeepCacheError, UnsupportedUNetError, cached, uniform
from deepcache.cache.prediction import Node, Polynomial, coordinate
from deepcache.unets.diffusers.forward import full_forward, shallow_forward
from deepcache.unets.diffusers.views import Cut
from tests.problems import SCHEDULERS, Aborted, aborting, denoise, latents, loop, pipeline, shared, small_unet, unet


@pytest.mark.parametrize("scheduler", [SCHEDULERS[name] for name in ("ddim", "pndm", "heun")])
def test_interval_one_equals_uncached(scheduler: Any) -> None:  # law 3
    expected = latents(pipeline(scheduler()))
    pipe = pipeline(scheduler())
    with cached(pipe, interval=1):
        assert torch.equal(latents(pipe), expected)
    assert torch.equal(latents(pipe), expected)


@pytest.mark.parametrize("branch", range(4))
def test_cached_differs_from_uncached(branch: int) -> None:
    """Test of the test: at a longer interval something is cached."""
    pipe = pipeline()
    expected = latents(pipe)
    with cached(pipe, interval=2, branch=branch):
        assert not torch.equal(latents(pipe), expected)


@pytest.mark.parametrize(
    ("name", "full_steps"), [("ddpm", (0,)), ("ddpm", (0, 1, 3)), ("sd-1.5", (0, 2, 4)), ("sdxl", (0, 1, 3))]
)
def test_cached_is_full_steps_of_the_plan_and_shallow_ones_between(name: str, full_steps: tuple[int, ...]) -> None:
    """Exact law: the oracle is a loop that calls the kernel by hand."""
    assert torch.equal(_cached(name, full_steps, order=0), _by_hand(name, full_steps, order=0))


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("full_steps", [(0,), (0, 2), (0, 1, 3, 4)])
def test_shallow_step_takes_the_feature_predicted_from_the_last_full_ones(
    full_steps: tuple[int, ...], order: int
) -> None:
    """The oracle is the same loop with a prediction by hand, of a lower order while too few features are known."""
    assert torch.equal(_cached("ddpm", full_steps, order), _by_hand("ddpm", full_steps, order))


def test_orders_differ() -> None:
    """Test of the test."""
    zero, one, two = (_cached("ddpm", (0, 1, 3, 4), order) for order in (0, 1, 2))
    assert not torch.equal(zero, one)
    assert not torch.equal(one, two)


def _cached(name: str, full_steps: tuple[int, ...], order: int) -> Tensor:
    pipe = SimpleNamespace(unet=unet(name), scheduler=DDIMScheduler())
    with cached(pipe, CachePlan(7, full_steps, branch=1, order=order)):
        return denoise(pipe, 7, name=name)


def _by_hand(name: str, full_steps: tuple[int, ...], order: int) -> Tensor:
    model, steps, nodes = shared(name), iter(range(7)), []
    cut = Cut.of(model, 1)

    def forward(sample: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        step = next(steps)
        if step not in full_steps:
            feature = Polynomial.through(nodes[: order + 1])(step, t)
            return shallow_forward(model, cut, feature, sample, t, *args, **kwargs)
        output, feature = full_forward(model, cut, sample, t, *args, **kwargs)
        nodes.insert(0, Node(step, coordinate(t), feature))
        return output

    return denoise(SimpleNamespace(unet=forward, scheduler=DDIMScheduler()), 7, name=name)


@pytest.mark.parametrize("last_step_full", [False, True])
@pytest.mark.parametrize("order", [0, 2])
def test_interval_equals_the_uniform_plan(order: int, last_step_full: bool) -> None:  # noqa: FBT001
    """An interval fits any number of steps; a plan fits one number."""
    pipe, how = pipeline(), {"branch": 2, "order": order, "last_step_full": last_step_full}
    for num_steps in (5, 6):
        with cached(pipe, uniform(num_steps, 3, **how)):
            expected = latents(pipe, num_steps=num_steps)
        with cached(pipe, interval=3, **how) as cache:
            assert torch.equal(latents(pipe, num_steps=num_steps), expected)
        assert cache.generations[0].full_steps == uniform(num_steps, 3, **how).full_steps


def _in_use(use: str, owner: Any, **how: Any) -> tuple[Cache, Any]:
    """Return a cache that is enabled or in a with block, and a function that ends its use."""
    cache = cached(owner, **how)
    if use == "enabled":
        return cache.enable(), cache.disable
    return cache.__enter__(), lambda: cache.__exit__(None, None, None)


def test_nothing_is_installed_before_a_cache_is_used() -> None:
    model = unet("ddpm")
    before = set(vars(model))
    cached(model, interval=2)
    assert set(vars(model)) == before


def test_cache_is_the_same_in_a_block_or_enabled_and_can_be_used_again() -> None:
    pipe = pipeline()
    uncached = latents(pipe)
    with cached(pipe, interval=2, order=1) as other:
        expected = latents(pipe)
    cache = cached(pipe, interval=2, order=1)
    for _ in range(2):
        with cache as inside:
            assert inside is cache
            assert torch.equal(latents(pipe), expected)
        _assert_own_forward(pipe.unet)
        assert torch.equal(latents(pipe), uncached)
        assert cache.enable() is cache
        assert torch.equal(latents(pipe), expected)
        cache.disable()
        _assert_own_forward(pipe.unet)
    assert [g.full_steps for g in cache.generations] == [other.generations[0].full_steps] * 4


def test_cache_that_is_used_again_keeps_its_compiled_steps() -> None:
    graphs: list[int] = []
    model = small_unet()
    with cached(model, interval=3):
        expected = loop(model)
    how = {"backend": lambda graph, _: graphs.append(1) or graph.forward}
    cache = cached(model, interval=3, compile=how)
    with cache:
        assert torch.equal(loop(model), expected)
    assert len(graphs) == 2
    cache.enable()
    assert torch.equal(loop(model), expected)
    cache.disable()
    assert len(graphs) == 2


def test_enabled_cache_stays_enabled_after_an_exception_in_a_step_and_begins_anew() -> None:
    pipe = pipeline()
    uncached = latents(pipe)
    cache = cached(pipe, interval=2).enable()
    expected = latents(pipe)
    with pytest.raises(Aborted), aborting(pipe.unet, 1):
        latents(pipe)
    assert torch.equal(latents(pipe), expected)
    cache.disable()
    _assert_own_forward(pipe.unet)
    assert torch.equal(latents(pipe), uncached)


def test_enabling_an_enabled_cache_and_disabling_a_disabled_one_do_nothing() -> None:
    model = unet("ddpm")
    cache = cached(model, interval=2)
    cache.disable()
    assert cache.enable() is cache.enable()
    cache.disable()
    _assert_own_forward(model)
    cache.disable()


def test_enabled_cache_stays_with_its_unet_and_goes_with_it() -> None:
    """Nobody else needs to hold the cache, and the cache keeps no U-Net alive that the program has dropped."""
    model = unet("ddpm")
    alive = weakref.ref(model)
    cached(model, interval=2).enable()
    gc.collect()
    assert "forward" in vars(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("use", ["enabled", "in a with block"])
def test_cache_in_use_cannot_be_entered(use: str) -> None:
    """The end of the second block would end the first use."""
    model = unet("ddpm")
    cache, end = _in_use(use, model, interval=2)
    with (
        pytest.raises(DeepCacheError, match=f"in use already .{use}.; .* call deepcache.cached again") as caught,
        cache,
    ):
        pass
    assert "\n" not in str(caught.value)
    assert "forward" in vars(model)
    end()
    _assert_own_forward(model)


@pytest.mark.parametrize("act", ["enable", "disable"])
def test_cache_in_its_block_is_neither_enabled_nor_disabled(act: str) -> None:
    model = unet("ddpm")
    with cached(model, interval=2) as cache:
        with pytest.raises(DeepCacheError, match=f"cannot {act} a cache in its own with block") as caught:
            getattr(cache, act)()
        assert "\n" not in str(caught.value)
        assert "forward" in vars(model)
    _assert_own_forward(model)


def test_block_comes_before_an_enabled_cache_and_of_two_that_are_enabled_the_last() -> None:
    pipe = pipeline()
    first, second = cached(pipe, interval=2).enable(), cached(pipe, interval=3)
    with second:
        latents(pipe)
    with cached(pipe, interval=4) as block:
        second.enable()
        latents(pipe)
    latents(pipe)
    second.disable()
    latents(pipe)
    first.disable()
    assert [g.full_steps for g in first.generations] == [(0, 2, 4)]
    assert [g.full_steps for g in second.generations] == [(0, 3)] * 2
    assert [g.full_steps for g in block.generations] == [(0, 4)]
    _assert_own_forward(pipe.unet)


@pytest.mark.parametrize("use", ["enabled", "in a with block"])
@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: setattr(pipe, "unet", unet("ddpm", seed=1)),
        lambda pipe: setattr(pipe, "unet", torch.compile(pipe.unet, backend="eager")),
        lambda pipe: pipe.unet.compile(backend="eager"),
    ],
    ids=["another", "wrapped", "compiled in place"],
)
def test_unet_that_changed_before_its_cache_is_used_is_refused(change: Any, use: str) -> None:
    """The cache would wait for a U-Net that the pipeline no longer calls, or run it uncompiled."""
    pipe = SimpleNamespace(unet=unet("ddpm"), scheduler=DDIMScheduler())
    model, cache = pipe.unet, cached(pipe, interval=2)
    change(pipe)
    with pytest.raises(DeepCacheError, match=r"replaced or compiled after .* call cached again") as caught:
        cache.enable() if use == "enabled" else cache.__enter__()
    assert "\n" not in str(caught.value)
    _assert_own_forward(model)
    _in_use(use, pipe, interval=2)[1]()


def test_unet_is_what_it_was_after_the_block() -> None:
    model = unet("ddpm")
    before = set(vars(model))
    with cached(model, interval=2):
        assert set(vars(model)) == {*before, "forward"}
    _assert_own_forward(model)
    assert set(vars(model)) == before


def test_unet_is_what_it_was_after_an_exception_in_the_block() -> None:
    pipe = pipeline()
    expected = latents(pipe)
    with pytest.raises(Aborted), cached(pipe, interval=2):
        raise Aborted
    _assert_own_forward(pipe.unet)
    assert torch.equal(latents(pipe), expected)


@pytest.mark.parametrize("call", [0, 1, 2])
def test_unet_is_what_it_was_after_an_exception_in_a_step(call: int) -> None:
    pipe = pipeline()
    expected = latents(pipe)
    with pytest.raises(Aborted), cached(pipe, interval=2), aborting(pipe.unet, call):
        latents(pipe)
    _assert_own_forward(pipe.unet)
    assert torch.equal(latents(pipe), expected)


def test_innermost_block_counts_and_the_outer_one_goes_on_after_it() -> None:
    """A generation with other arguments runs inside the outer generation; both equal what they are alone."""
    outer, inner = pipeline(), pipeline(seed=1)
    with cached(outer, interval=4):
        expected_outer = latents(outer, num_steps=8)
    with cached(outer.unet, interval=2, branch=3, order=1):
        inner.unet = outer.unet
        expected_inner = latents(inner, num_steps=4)

    def callback(*_: Any) -> None:
        with cached(inner, interval=2, branch=3, order=1) as cache:
            found.append(latents(inner, num_steps=4))
            full_steps.append(cache.generations[0].full_steps)

    found, full_steps, scheduler_step, calls = [], [], outer.scheduler.step, iter(range(8))

    def step(*args: Any, **kwargs: Any) -> Any:
        if next(calls) in (0, 5):
            callback()
        return scheduler_step(*args, **kwargs)

    with cached(outer, interval=4) as cache:
        outer.scheduler.step = step
        assert torch.equal(latents(outer, num_steps=8), expected_outer)
        assert [g.full_steps for g in cache.generations] == [(0, 4)]
    assert full_steps == [(0, 2)] * 2
    torch.testing.assert_close(found, [expected_inner] * 2, rtol=0, atol=0)
    _assert_own_forward(outer.unet)


def test_block_left_before_one_that_was_entered_after_it_takes_nothing_from_that() -> None:
    model = unet("ddpm")
    first, second = cached(model, interval=2), cached(model, interval=3)
    with first as outer:
        inner = second.__enter__()
    denoise(SimpleNamespace(unet=model, scheduler=DDIMScheduler()), 4, name="ddpm")
    assert [len(cache.generations) for cache in (outer, inner)] == [0, 1]
    second.__exit__(None, None, None)
    _assert_own_forward(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "expected interval to be a whole number of at least 1, got 0"),
        ({"interval": 2.5}, "got 2.5"),
        ({"interval": True}, "got True"),
        ({"interval": 2, "branch": 6}, r"expected branch 0\.\.5, .* got 6"),
        ({"interval": 2, "branch": -2}, "expected branch to be a whole number of at least -1, got -2"),
        ({"interval": 2, "branch": 1.0}, r"got 1\.0"),
        ({"interval": 2, "order": 3}, "expected order to be 'auto' or one of 0, 1, 2, got 3"),
        ({"interval": 2, "order": True}, "got True"),
        ({"interval": 2, "compile": "fast"}, "expected compile to be one of .* got 'fast'"),
        ({"plan": uniform(4, 2, branch=6)}, r"expected branch 0\.\.5, .* got 6"),
        ({}, "plan= alone, or interval="),
        ({"branch": 1}, "plan= alone, or interval="),
        ({"plan": uniform(4, 2), "interval": 2}, "plan= alone, or interval="),
        ({"plan": uniform(4, 2), "branch": 2}, "plan= alone, or interval="),
        ({"plan": uniform(4, 2), "order": 0}, "plan= alone, or interval="),
        ({"plan": uniform(4, 2), "last_step_full": True}, "plan= alone, or interval="),
    ],
)
def test_bad_argument_is_refused_in_one_line_and_the_unet_left_alone(arguments: dict[str, Any], message: str) -> None:
    model = unet("ddpm")
    with pytest.raises(DeepCacheError, match=message) as caught, cached(model, **arguments):
        pass
    assert "\n" not in str(caught.value)
    _assert_own_forward(model)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(UnsupportedUNetError, match="got a function"), cached(lambda sample: sample, interval=2):
        pass


def _assert_own_forward(model: nn.Module) -> None:
    assert "forward" not in vars(model)
    forward: Any = model.forward
    assert forward.__func__ is type(model).forward

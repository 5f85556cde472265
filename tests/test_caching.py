"""Laws of `cached`. The oracle is the uncached U-Net or the kernel by hand; the same operations run, so bit for bit."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from problems import SCHEDULERS, Aborted, aborting, denoise, inputs, latents, num_branches, pipeline, shared, unet
from torch import nn

from deepcache import CachePlan, DeepCacheError, UnsupportedUNetError, cached, uniform
from deepcache.forward import full_forward, shallow_forward


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_interval_one_equals_uncached(scheduler: Any) -> None:  # law 3
    expected = latents(pipeline(scheduler()))
    pipe = pipeline(scheduler())
    with cached(pipe, interval=1):
        assert torch.equal(latents(pipe), expected)
    assert torch.equal(latents(pipe), expected)


@pytest.mark.parametrize("branch", range(0, num_branches("ldm-4-g"), 3))
def test_cached_differs_from_uncached(branch: int) -> None:
    """Test of the test: at a longer interval something is cached."""
    pipe = pipeline()
    expected = latents(pipe)
    with cached(pipe, interval=2, branch=branch):
        assert not torch.equal(latents(pipe), expected)


@pytest.mark.parametrize("full_steps", [(0,), (0, 2, 4), (0, 1, 3)])
@pytest.mark.parametrize("name", ["ddpm", "sd-1.5", "sdxl"])
def test_cached_is_full_steps_of_the_plan_and_shallow_ones_between(name: str, full_steps: tuple[int, ...]) -> None:
    """Exact law: a loop that calls the kernel by hand."""
    plan = CachePlan(5, full_steps, branch=1)
    pipe = SimpleNamespace(unet=unet(name), scheduler=DDIMScheduler())
    with cached(pipe, plan):
        found = denoise(pipe, 5, name=name)
    model, calls, feature = shared(name), iter(range(5)), torch.empty(0)

    def by_hand(*args: Any, **kwargs: Any) -> Any:
        nonlocal feature
        if next(calls) not in full_steps:
            return shallow_forward(model, 1, feature, *args, **kwargs)
        output, feature = full_forward(model, 1, *args, **kwargs)
        return output

    assert torch.equal(found, denoise(SimpleNamespace(unet=by_hand, scheduler=DDIMScheduler()), 5, name=name))


def test_unet_is_what_it_was_after_the_block() -> None:
    model = unet("ddpm")
    before = set(vars(model))
    with cached(model, interval=2) as cache:
        assert model.forward is cache
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


def test_second_block_on_one_unet_is_refused_in_one_line() -> None:
    pipe = pipeline()
    with cached(pipe, interval=2):
        with pytest.raises(DeepCacheError, match="cached already") as caught, cached(pipe.unet, interval=3):
            pass
        assert pipe.unet.forward.branch == 0
    assert "\n" not in str(caught.value)
    with cached(pipe, interval=2):
        pass
    _assert_own_forward(pipe.unet)


def test_foreign_forward_is_refused_and_left_alone() -> None:
    model = unet("ddpm")
    model.forward = foreign = lambda *_: None
    with pytest.raises(DeepCacheError, match="expected a U-Net with its own forward"), cached(model, interval=2):
        pass
    assert model.forward is foreign


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "expected interval to be a whole number of at least 1, got 0"),
        ({"interval": 2.5}, "got 2.5"),
        ({"interval": True}, "got True"),
        ({"interval": 2, "branch": 6}, r"expected branch 0\.\.5, .* got 6"),
        ({"interval": 2, "branch": -1}, "got -1"),
        ({"plan": uniform(4, 2, branch=6)}, r"expected branch 0\.\.5, .* got 6"),
        ({}, "either a plan .* or an interval"),
        ({"branch": 1}, "either a plan .* or an interval"),
        ({"plan": uniform(4, 2), "interval": 2}, "either a plan .* or an interval"),
        ({"plan": uniform(4, 2), "branch": 2}, "either a plan .* or an interval"),
    ],
)
def test_bad_argument_is_refused_and_the_unet_left_alone(arguments: dict[str, Any], message: str) -> None:
    model = unet("ddpm")
    with pytest.raises(DeepCacheError, match=message), cached(model, **arguments):
        pass
    _assert_own_forward(model)


def test_foreign_object_is_refused() -> None:
    with pytest.raises(UnsupportedUNetError, match="got a Linear"), cached(nn.Linear(1, 1), interval=2):
        pass


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickle"]
)
def test_copy_of_a_cached_unet_is_an_ordinary_unet(clone: Any) -> None:
    model, (args, kwargs) = unet("ddpm"), inputs("ddpm")
    expected = model(*args, **kwargs).sample
    with cached(model, interval=9) as cache:
        model(*inputs("ddpm", seed=1)[0])
        twin = clone(model)
        assert torch.equal(twin(*args, **kwargs).sample, expected)
        assert model.forward is cache
        assert cache.generations[0].num_steps == 1
    with torch.no_grad():
        model.conv_in.weight.zero_()
    assert torch.equal(twin(*args, **kwargs).sample, expected)
    with cached(twin, interval=1):
        assert torch.equal(twin(*args, **kwargs).sample, expected)


def _assert_own_forward(model: nn.Module) -> None:
    assert "forward" not in vars(model)
    assert model.forward.__func__ is type(model).forward

"""Laws of the older package's interface. The oracles are the older package and `deepcache.cached`, bit for bit."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import DeepCache
import pytest
import torch
from diffusers import DDIMScheduler

from deepcache import DeepCacheError, cached
from deepcache.compat import DeepCacheSDHelper
from tests.problems import denoise, latents, pipeline, unet

NAME = "sd-1.5"


def _run_with(helper_class: Any, interval: int, branch: int) -> torch.Tensor:
    """Run a user's program, in which one import differs."""
    pipe = SimpleNamespace(unet=unet(NAME), scheduler=DDIMScheduler())
    helper = helper_class(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    found = denoise(pipe, 4, name=NAME)
    helper.disable()
    return found


@pytest.mark.parametrize(("interval", "branch"), [(1, 0), (3, 4), (2, 11)])
def test_helper_equals_the_older_packages(interval: int, branch: int) -> None:
    ours, theirs = (_run_with(helper, interval, branch) for helper in (DeepCacheSDHelper, DeepCache.DeepCacheSDHelper))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("order", [0, 1])
def test_enable_and_disable_are_a_block(order: int) -> None:
    pipe = pipeline()
    uncached = latents(pipe)
    with cached(pipe, interval=2, order=order):
        expected = latents(pipe)
    helper = DeepCacheSDHelper()
    helper.set_params(cache_interval=2, order=order)
    cache = helper.enable(pipe)
    assert torch.equal(latents(pipe), expected)
    assert cache.generations[0].full_steps == (0, 2, 4)
    helper.disable()
    helper.disable()
    assert "forward" not in vars(pipe.unet)
    assert torch.equal(latents(pipe), uncached)


def test_second_enable_takes_the_new_parameters() -> None:
    pipe = pipeline()
    with cached(pipe, interval=3, order=0):
        expected = latents(pipe)
    helper = DeepCacheSDHelper(pipe)
    for interval in (2, 3):
        helper.set_params(cache_interval=interval)
        helper.enable()
    assert torch.equal(latents(pipe), expected)
    helper.disable()
    assert "forward" not in vars(pipe.unet)


def test_new_parameters_hold_while_it_is_enabled() -> None:
    pipe = pipeline()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=2)
    helper.enable()
    latents(pipe)
    with pytest.raises(DeepCacheError, match=r"expected branch 0\.\."):
        helper.set_params(cache_interval=3, cache_branch_id=99)
    with cached(expected := pipeline(), interval=2, order=0):
        image = latents(expected)
    assert torch.equal(latents(pipe), image)
    helper.set_params(cache_interval=3)
    with cached(expected := pipeline(), interval=3, order=0):
        image = latents(expected)
    assert torch.equal(latents(pipe), image)
    helper.disable()
    assert "forward" not in vars(pipe.unet)


@pytest.mark.parametrize("helper_class", [DeepCacheSDHelper, DeepCache.DeepCacheSDHelper])
def test_it_stays_enabled_when_the_helper_is_gone(helper_class: Any) -> None:
    def enabled() -> SimpleNamespace:
        pipe = SimpleNamespace(unet=unet(NAME), scheduler=DDIMScheduler())
        helper = helper_class(pipe=pipe)
        helper.set_params(cache_interval=3, cache_branch_id=0)
        helper.enable()
        return pipe

    pipe = enabled()
    gc.collect()
    with cached(expected := SimpleNamespace(unet=unet(NAME), scheduler=DDIMScheduler()), interval=3, order=0):
        image = denoise(expected, 4, name=NAME)
    assert torch.equal(denoise(pipe, 4, name=NAME), image)


def test_refused_parameters_leave_the_unet_alone() -> None:
    pipe = pipeline()
    helper = DeepCacheSDHelper(pipe)
    with pytest.raises(DeepCacheError, match="call set_params before enable"):
        helper.enable()
    with pytest.raises(DeepCacheError, match="skip_mode 'uniform', got 'quadratic'"):
        helper.set_params(skip_mode="quadratic")
    helper.set_params(cache_interval=2, cache_branch_id=99)
    with pytest.raises(DeepCacheError, match=r"expected branch 0\.\.3"):
        helper.enable()
    with pytest.raises(DeepCacheError, match="expected a pipeline"):
        DeepCacheSDHelper().enable()
    assert "forward" not in vars(pipe.unet)

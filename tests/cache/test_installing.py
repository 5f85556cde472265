"""Other packages may wrap a U-Net before or while it is cached.

The oracle is a cached U-Net without other wrappers and, after the block, the U-Net's own forward, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from DeepCache import DeepCacheSDHelper
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from torch import Tensor, nn

from deepcache import DeepCacheError, UnsupportedUNetError, cached
from tests.problems import loop, unet

NAME = "ddpm"


def _is_own(model: nn.Module) -> bool:
    """Return whether a call runs the class's forward; accelerate leaves that in the module when a hook is removed."""
    forward: Any = model.forward
    return forward.__func__ is type(model).forward and forward.__self__ is model


class Hook(ModelHook):
    """Counts the calls that pass through the hook."""

    calls = 0

    def pre_forward(self, _module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


HOOKED: dict[str, Callable[[nn.Module], Any]] = {
    "hook": lambda model: add_hook_to_module(model, Hook()),
    "hook beside another": lambda model: add_hook_to_module(model, Hook(), append=True),
    "offload with hook": lambda model: accelerate.cpu_offload_with_hook(model, execution_device="cpu"),
    "offload of leaves": lambda model: accelerate.cpu_offload(model, execution_device="cpu"),
}


COMBINATIONS = [
    pytest.param(hook, when, removed, id=f"{name}, put on {when}, removed {removed}")
    for name, hook in HOOKED.items()
    for when, removed in (("before", "during"), ("during", "after"), ("both", "during"), ("before", "after"))
    if (name, when) != ("offload of leaves", "both")  # accelerate refuses that
]


@pytest.mark.parametrize(("hook", "when", "removed"), COMBINATIONS)
def test_hooks_of_accelerate_come_and_go(
    hook: Callable[[nn.Module], Any], when: str, removed: str, expected: Tensor, uncached: Tensor
) -> None:
    model = unet(NAME)
    if when != "during":
        hook(model)
    with cached(model, interval=3) as cache:
        assert torch.equal(loop(model), expected)
        if when != "before":
            hook(model)
        assert torch.equal(loop(model), expected)
        if removed == "during":
            remove_hook_from_module(model, recurse=True)
        assert torch.equal(loop(model), expected)
        assert [g.full_steps for g in cache.generations] == [(0, 3)] * 3
    assert torch.equal(loop(model), uncached)
    if removed == "after":
        remove_hook_from_module(model, recurse=True)
    assert _is_own(model)
    assert torch.equal(loop(model), uncached)


def test_hook_is_called_once_a_call_whether_the_unet_is_cached_or_not() -> None:
    model, hook = unet(NAME), Hook()
    add_hook_to_module(model, hook)
    for interval in (1, 3):
        with cached(model, interval=interval):
            loop(model)
    loop(model)
    assert hook.calls == 15


@pytest.mark.parametrize("branch", [0, 2])  # through an up block; through a down block
def test_hook_on_a_block_that_the_branch_cuts_through_is_refused_on_entry(branch: int) -> None:
    """A device map puts a hook on every module. Hooks between the cut blocks, or removed hooks, do not matter."""
    model = unet(NAME)
    with cached(model, interval=3, branch=5):
        image = loop(model)
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    with cached(model, interval=3, branch=5):
        assert torch.equal(loop(model), image)
    with pytest.raises(UnsupportedUNetError, match="hooks") as caught, cached(model, interval=3, branch=branch):
        pass
    assert "\n" not in str(caught.value)
    remove_hook_from_module(model, recurse=True)
    with cached(model, interval=3, branch=branch):
        loop(model)


def test_copy_of_a_hooked_and_cached_unet_is_a_hooked_unet(uncached: Tensor) -> None:
    model = unet(NAME)
    add_hook_to_module(model, Hook())
    with cached(model, interval=3) as cache:
        twin = copy.deepcopy(model)
        assert torch.equal(loop(twin), uncached)
        assert not cache.generations
    assert twin._hf_hook.calls == 5


def _cast(model: nn.Module) -> None:
    apply_layerwise_casting(model, storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


@pytest.mark.parametrize("when", ["before", "during"])
def test_layerwise_casting_of_diffusers_is_as_uncached(when: str) -> None:
    ordinary, model = unet(NAME), unet(NAME)
    _cast(ordinary)
    want = loop(ordinary)
    if when == "before":
        _cast(model)
    with cached(model, interval=1) as cache:
        if when == "during":
            _cast(model)
        assert torch.equal(loop(model), want)
    assert cache.generations[0].num_steps == 5
    assert _is_own(model)
    assert torch.equal(loop(model), want)


@pytest.mark.parametrize("when", ["before", "during"])
def test_group_offloading_of_leaves_is_as_without_it(when: str, expected: Tensor, uncached: Tensor) -> None:
    """The target is the CPU, so that the test needs no accelerator."""
    model = unet(NAME)
    offload = {"onload_device": torch.device("cpu"), "offload_type": "leaf_level"}
    if when == "before":
        apply_group_offloading(model, **offload)
    with cached(model, interval=3):
        if when == "during":
            apply_group_offloading(model, **offload)
        assert torch.equal(loop(model), expected)
    assert torch.equal(loop(model), uncached)


def _offload_blocks(model: nn.Module) -> None:
    apply_group_offloading(model, onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)


def _enable_older_package(model: nn.Module) -> DeepCacheSDHelper:
    helper = DeepCacheSDHelper(pipe=SimpleNamespace(unet=model))
    helper.set_params(cache_interval=1)
    helper.enable()
    return helper


def _replace(model: nn.Module) -> None:
    before = model.forward
    model.forward = lambda *args, **kwargs: before(*args, **kwargs)


FOREIGN = {"another function": _replace, "older package": _enable_older_package}


@pytest.mark.parametrize("wrap", FOREIGN.values(), ids=FOREIGN)
def test_foreign_forward_is_refused_in_one_line_and_left_alone(wrap: Callable[[nn.Module], Any]) -> None:
    model = unet(NAME)
    wrap(model)
    foreign = vars(model)["forward"]
    with (
        pytest.raises(DeepCacheError, match=r"with its own forward|a forward that another package put") as caught,
        cached(model, interval=2),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert vars(model)["forward"] is foreign


@pytest.mark.parametrize("wrap", [_replace, _offload_blocks], ids=["another function", "group offloading"])
def test_foreign_forward_from_within_the_block_ends_up_around_the_unets_own(
    wrap: Callable[[nn.Module], Any], uncached: Tensor
) -> None:
    """The other package did not ask the library; after the block the library is out of the way."""
    model = unet(NAME)
    with cached(model, interval=3) as cache:
        wrap(model)
    assert torch.equal(loop(model), uncached)
    assert not cache.generations


def test_forward_that_was_taken_out_within_the_block_stays_out(uncached: Tensor) -> None:
    model = unet(NAME)
    with cached(model, interval=3):
        del model.forward
        assert torch.equal(loop(model), uncached)
    assert _is_own(model)


def test_unet_that_the_older_package_gave_back_is_cached(expected: Tensor) -> None:
    """The older package leaves each module's own forward in the module."""
    model = unet(NAME)
    _enable_older_package(model).disable()
    with cached(model, interval=3):
        assert torch.equal(loop(model), expected)


def _wrapped(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def _in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(("compiled", "is_called_before"), [(_wrapped, True), (_in_place, False)])
@torch.compiler.set_stance("force_eager")
def test_compiled_unet_is_cached_and_compiled_again_afterwards(
    compiled: Callable[[nn.Module], Any],
    is_called_before: bool,  # noqa: FBT001
    expected: Tensor,
    uncached: Tensor,
) -> None:
    """Nothing is traced here: tests/cache/test_steps.py looks at the graphs."""
    model = unet(NAME)
    outer = compiled(model)
    if is_called_before:
        assert torch.equal(loop(outer), uncached)
    before = model._compiled_call_impl, vars(outer).get("forward")
    with cached(outer, interval=3) as cache:
        assert torch.equal(loop(outer), expected)
        assert cache.generations[0].full_steps == (0, 3)
    assert (model._compiled_call_impl, vars(outer).get("forward")) == before
    assert _is_own(model)
    assert torch.equal(loop(outer), uncached)


def test_compiled_wrapper_under_a_block_of_the_bare_unet_is_cached(expected: Tensor, uncached: Tensor) -> None:
    """A second pipeline may hold the compiled wrapper."""
    model = unet(NAME)
    outer = _wrapped(model)
    with cached(model, interval=3):
        assert torch.equal(loop(outer), expected)
    with torch.compiler.set_stance("force_eager"):  # the whole U-Net would be traced
        assert torch.equal(loop(outer), uncached)

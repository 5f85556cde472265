"""Views: a U-Net that runs fewer of its own blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn

from deepcache import DeepCacheError, UnsupportedUNetError
from deepcache.unets.diffusers.forward import full_forward, shallow_forward
from deepcache.unets.diffusers.views import Cut, full_view, shallow_view
from tests.problems import NAMES, assert_laws_of_kernel, inputs, num_branches, shared, unet

HOOKS: dict[str, Callable[[Any], Any]] = {
    "hook": lambda block: block.register_forward_hook(lambda *_: None),
    "pre-hook": lambda block: block.register_forward_pre_hook(lambda *_: None),
    "accelerate": lambda block: add_hook_to_module(block, ModelHook()),
    "foreign forward": lambda block: setattr(block, "forward", partial(type(block).forward, block)),
}


@pytest.mark.parametrize("name", NAMES)
def test_cut_leaves_as_many_stages_live_on_either_side_as_the_branch_says(name: str) -> None:  # exact law, by hand
    model = shared(name)
    for branch in range(num_branches(name)):
        cut = Cut.of(model, branch)
        whole = sum(len(block.resnets) + len(block.downsamplers or ()) for block in model.down_blocks[: cut.whole])
        up = [len(block.resnets) for block in model.up_blocks[cut.block :]]
        assert 1 + whole + cut.part == branch + 1
        assert sum(up) - cut.resnet == branch + 1


@pytest.mark.parametrize("branch", [6, -1, 1.0, True, None])
def test_branch_that_the_unet_does_not_have_is_refused(branch: Any) -> None:
    with pytest.raises(
        DeepCacheError, match=r"expected branch 0\.\.5, one for each skip connection of this U-Net, got"
    ):
        Cut.of(shared("ddpm"), branch)


@pytest.mark.parametrize("name", NAMES)
def test_views_share_the_weights_and_leave_the_unet_as_it_was(name: str) -> None:
    model = shared(name)
    before, own = _identities(model), {id(weight) for weight in model.parameters()}
    for branch in range(num_branches(name)):
        cut = Cut.of(model, branch)
        (full, _), (shallow, _) = full_view(model, cut), shallow_view(model, cut)
        assert {id(weight) for weight in full.parameters()} == own
        assert {id(weight) for weight in shallow.parameters()} <= own  # all of them where there is no mid block
    assert _identities(model) == before


@pytest.mark.parametrize("how", HOOKS)
@pytest.mark.parametrize(("side", "branch"), [("up", 0), ("up", 4), ("down", 1), ("down", 4)])
def test_hook_on_a_block_that_the_branch_cuts_through_is_refused_by_name(side: str, branch: int, how: str) -> None:
    """Half a block cannot run what somebody put around the whole of it."""
    model, (args, kwargs) = unet("ddpm"), inputs("ddpm")
    cut = Cut.of(model, branch)
    block = model.up_blocks[cut.block] if side == "up" else model.down_blocks[cut.whole]
    assert cut.resnet if side == "up" else cut.part
    _, feature = full_forward(model, cut, *args, **kwargs)
    HOOKS[how](block)
    with pytest.raises(UnsupportedUNetError, match=f"{type(block).__name__} without hooks, because this branch cuts"):
        _full_and_shallow(model, cut, feature, args, kwargs)


@pytest.mark.parametrize("how", HOOKS)
def test_hook_on_a_block_that_stays_whole_is_kept(how: str) -> None:
    """Branch 3 ends with the first down block's downsampler, and cuts through the first up block alone."""
    model, (args, kwargs) = unet("ddpm"), inputs("ddpm")
    cut = Cut.of(model, 3)
    assert (cut.part, cut.whole, cut.block) == (0, 1, 0)
    for block in (*model.down_blocks, model.mid_block, model.up_blocks[1]):
        HOOKS[how](block)
    assert_laws_of_kernel(model, (3,), args, kwargs)


def test_hooks_on_resnets_and_whole_blocks_run() -> None:
    """The hooks change what passes through, so that a hook which did not run would change the output."""
    model, (args, kwargs), calls = unet("sd-1.5"), inputs("sd-1.5"), Counter()
    expected = model(*args, **kwargs).sample

    def shift(key: str) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            calls[key] += 1
            return (output[0] + 0.1, *output[1:]) if isinstance(output, tuple) else output + 0.1

        return hook

    for key, module in {
        "conv_in": model.conv_in,
        "resnet": model.up_blocks[3].resnets[2],
        "attention": model.up_blocks[3].attentions[1],
        "block": model.down_blocks[0],
    }.items():
        module.register_forward_hook(shift(key))
    hooked = model(*args, **kwargs).sample
    assert not torch.equal(hooked, expected)
    calls.clear()
    assert_laws_of_kernel(model, (3,), args, kwargs)
    assert calls == {"conv_in": 3, "resnet": 3, "attention": 3, "block": 3}


def test_hook_on_a_deep_block_sleeps_on_a_shallow_step() -> None:
    model, (args, kwargs), calls = unet("ddpm"), inputs("ddpm"), []
    model.mid_block.register_forward_hook(lambda *_: calls.append("mid"))
    model.up_blocks[0].register_forward_hook(lambda *_: calls.append("up"))
    cut = Cut.of(model, 0)
    _, feature = full_forward(model, cut, *args, **kwargs)
    assert calls == ["mid", "up"]
    shallow_forward(model, cut, feature, *args, **kwargs)
    assert calls == ["mid", "up"]


@pytest.mark.parametrize("name", ["sd-1.5", "modelscope", "animatediff"])
def test_freeu_switched_off_again_leaves_nothing(name: str) -> None:
    model, (args, kwargs) = unet(name), inputs(name)
    expected: Tensor = model(*args, **kwargs).sample
    model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert not torch.equal(model(*args, **kwargs).sample, expected)
    model.disable_freeu()
    assert torch.equal(model(*args, **kwargs).sample, expected)
    assert_laws_of_kernel(model, (0, num_branches(name) - 1), args, kwargs)


def test_feature_is_taken_before_freeu_scales_it() -> None:
    """An exact law: at the last branch the feature is the output of the mid block, with FreeU or without."""
    model, (args, kwargs), seen = unet("sd-1.5"), inputs("sd-1.5"), []
    model.mid_block.register_forward_hook(lambda _module, _args, output: seen.append(output.clone()))
    model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    _, (feature,) = full_forward(model, Cut.of(model, num_branches("sd-1.5") - 1), *args, **kwargs)
    assert torch.equal(feature, seen[0])


def _full_and_shallow(model: nn.Module, cut: Cut, feature: Any, args: Any, kwargs: Any) -> None:
    full_forward(model, cut, *args, **kwargs)
    shallow_forward(model, cut, feature, *args, **kwargs)


def _identities(model: nn.Module) -> list[tuple[str, str, int]]:
    """Return the identity of every attribute and child of every module."""
    return [
        (path, key, id(value))
        for path, module in model.named_modules()
        for key, value in (*vars(module).items(), *module._modules.items())
    ]

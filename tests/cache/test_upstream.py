"""Law 4: uniform plans equal the older package `DeepCache` 0.1.1, bit for bit, wherever that package is right.

The older package looks a step up as `list(scheduler.timesteps).index(t)`. PLMS repeats its second timestep, so that the
package takes call 2 for step 1; it finds every other call of PLMS, and every call of DDIM, at its own step. Therefore
the package is right under DDIM at every interval, and under PLMS at every interval but 2, at which alone call 2 is full
and step 1 is not. `test_older_package.py` shows what else goes wrong in the package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import ControlNetModel
from torch import Tensor

from deepcache import CachePlan, cached, uniform
from tests.problems import SCHEDULERS, denoise, inputs, num_branches, unet
from tests.topologies import blocks

NAME, NUM_STEPS = "sd-1.5", 7
LEVELS = {  # the first, one of the two in the middle, and the last
    **blocks("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "block_out_channels": (8, 16, 16),
}
BRANCHES = range(9)


def _pipe(scheduler: str, name: str = NAME) -> SimpleNamespace:
    model = unet(name, **LEVELS) if name == NAME else unet(name)
    return SimpleNamespace(unet=model, scheduler=SCHEDULERS[scheduler]())


def _num_calls(scheduler: str) -> int:
    return NUM_STEPS + (scheduler == "plms")


def _image(pipe: Any) -> Tensor:
    return denoise(pipe, NUM_STEPS, name=NAME)


def _short_image(pipe: Any) -> Tensor:
    """Two full and two shallow steps at interval 2."""
    return denoise(pipe, 4, name=NAME)


@cache
def _uncached(scheduler: str, image: Callable[[Any], Tensor] = _image) -> Tensor:
    return image(_pipe(scheduler))


def _upstream(
    pipe: Any, interval: int, branch: int, image: Callable[[Any], Tensor] = _image
) -> tuple[Tensor, tuple[int, ...]]:
    """Return the older package's output, and the calls in which it ran the mid block."""
    mid: list[int] = []
    calls: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    pipe.unet.mid_block.resnets[0].register_forward_hook(lambda *_: mid.append(len(calls) - 1))
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    return image(pipe), tuple(mid)


def _ours(pipe: Any, image: Callable[[Any], Tensor] = _image, **how: Any) -> Tensor:
    """Return our output at order 0, since the older package has no other order."""
    with cached(pipe, **({"order": 0} if "interval" in how else {}), **how):
        return image(pipe)


@pytest.mark.parametrize("branch", BRANCHES)
def test_uniform_interval_equals_upstream(branch: int) -> None:
    theirs, full_steps = _upstream(_pipe("ddim"), 2, branch, _short_image)
    assert full_steps == (0, 2)
    assert torch.equal(_ours(_pipe("ddim"), _short_image, interval=2, branch=branch), theirs)
    assert not torch.equal(theirs, _uncached("ddim", _short_image))  # test of the test: something was cached


@pytest.mark.parametrize("interval", [3, 4, 8])
def test_every_interval_but_two_equals_upstream_under_plms(interval: int) -> None:
    theirs, full_steps = _upstream(_pipe("plms"), interval, branch=1)
    assert full_steps == uniform(_num_calls("plms"), interval).full_steps
    assert torch.equal(_ours(_pipe("plms"), interval=interval, branch=1), theirs)


@pytest.mark.parametrize("scheduler", ["euler", "dpm-solver++"])
def test_schedulers_that_repeat_no_timestep_equal_upstream(scheduler: str) -> None:
    def image(pipe: Any) -> Tensor:
        (sample, _, context), _ = inputs(NAME)
        pipe.scheduler.set_timesteps(5)
        for t in pipe.scheduler.timesteps:
            noise = pipe.unet(pipe.scheduler.scale_model_input(sample, t), t, context).sample
            sample = pipe.scheduler.step(noise, t, sample).prev_sample
        return sample

    theirs, _ = _upstream(_pipe(scheduler), 3, 1, image)
    assert torch.equal(_ours(_pipe(scheduler), image, interval=3, branch=1), theirs)


def test_upstream_at_interval_two_under_plms_is_another_plan() -> None:
    """The older package is wrong only in its plan: on the plan that it follows, the outputs are equal."""
    branch = 6
    theirs, full_steps = _upstream(_pipe("plms"), 2, branch)
    assert full_steps == (0, 4, 6)
    assert uniform(_num_calls("plms"), 2).full_steps == (0, 2, 4, 6)
    assert torch.equal(_ours(_pipe("plms"), plan=CachePlan(_num_calls("plms"), full_steps, branch, order=0)), theirs)
    assert not torch.equal(_ours(_pipe("plms"), interval=2, branch=branch), theirs)


@pytest.mark.parametrize("scheduler", ["ddim", "plms"])
def test_interval_one_of_both_is_uncached(scheduler: str) -> None:
    theirs, full_steps = _upstream(_pipe(scheduler), 1, branch=0)
    assert full_steps == tuple(range(_num_calls(scheduler)))
    assert torch.equal(theirs, _uncached(scheduler))
    assert torch.equal(_ours(_pipe(scheduler), interval=1), theirs)


def test_another_branch_is_told_apart() -> None:
    """Test of the test: neighbouring branches differ, so equality at every branch means the same numbering."""
    outputs = [
        _ours(_pipe("ddim"), lambda pipe: denoise(pipe, 2, name=NAME), interval=2, branch=branch) for branch in BRANCHES
    ]
    assert not any(torch.equal(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


def test_unet_with_one_resnet_a_block_has_one_branch_twice_upstream() -> None:
    """The older package divides the branch by three; here its branches 1 and 2 are the same, and its 3 is our 2."""

    def image(pipe: Any) -> Tensor:
        return denoise(pipe, NUM_STEPS, name="ddpm-attention")

    branches = range(num_branches("ddpm-attention"))
    ours = [_ours(_pipe("ddim", "ddpm-attention"), image, interval=3, branch=branch) for branch in branches]
    theirs = [_upstream(_pipe("ddim", "ddpm-attention"), 3, branch, image)[0] for branch in branches]
    assert [[torch.equal(one, other) for other in ours].index(True) for one in theirs] == [0, 1, 1, 2]
    assert not any(torch.equal(a, b) for i, a in enumerate(ours) for b in ours[:i])


def test_another_size_in_the_next_generation_equals_upstream() -> None:
    """Step 0 of the next generation is full in both packages."""

    def images(pipe: Any) -> Tensor:
        _image(pipe)
        (sample, _, context), _ = inputs(NAME, size=(16, 8))
        pipe.scheduler.set_timesteps(NUM_STEPS)
        for t in pipe.scheduler.timesteps:
            sample = pipe.scheduler.step(pipe.unet(sample, t, context).sample, t, sample).prev_sample
        return sample

    theirs, full_steps = _upstream(_pipe("ddim"), 3, 1, images)
    assert full_steps == (0, 3, 6, 7, 10, 13)
    assert torch.equal(_ours(_pipe("ddim"), images, interval=3, branch=1), theirs)


def test_residuals_of_a_controlnet_equal_upstream() -> None:
    (first, _, context), _ = inputs(NAME)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ControlNetModel.from_unet(_pipe("ddim").unet).eval().requires_grad_(requires_grad=False)
        for parameter in net.parameters():  # its last convolutions begin as zeros
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        condition = torch.randn(2, 3, 64, 64)

    def image(pipe: Any) -> Tensor:
        sample = first
        pipe.scheduler.set_timesteps(5)
        for t in pipe.scheduler.timesteps:
            down, mid = net(sample, t, encoder_hidden_states=context, controlnet_cond=condition, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            noise = pipe.unet(sample, t, encoder_hidden_states=context, **residuals).sample
            sample = pipe.scheduler.step(noise, t, sample).prev_sample
        return sample

    theirs, _ = _upstream(_pipe("ddim"), 3, 1, image)
    assert torch.equal(_ours(_pipe("ddim"), image, interval=3, branch=1), theirs)
    assert not torch.equal(theirs, image(_pipe("ddim")))

"""Uniform plans equal the older package `DeepCache` 0.1.1, bit for bit, wherever that one is right (law 4).

The older package looks a step up as `list(scheduler.timesteps).index(t)`. PLMS repeats its second timestep, so there
call 2 is looked up as step 1; every other call of PLMS, and all of DDIM's, are found where they are. So it is right
under DDIM at every interval, and under PLMS at every interval but 2: only there is call 2 full and step 1 not, so that
it runs call 2 shallow. Its outputs then are those of the plan that it really follows.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler, PNDMScheduler
from problems import denoise, num_branches, unet
from torch import Tensor

from deepcache import CachePlan, cached, uniform

NAME, NUM_STEPS = "sd-1.5", 7
SCHEDULERS = {"ddim": DDIMScheduler, "plms": lambda: PNDMScheduler(skip_prk_steps=True)}
BRANCHES = range(num_branches(NAME))


def _pipe(scheduler: str) -> SimpleNamespace:
    return SimpleNamespace(unet=unet(NAME), scheduler=SCHEDULERS[scheduler]())


def _num_calls(scheduler: str) -> int:
    return NUM_STEPS + (scheduler == "plms")


@cache
def _uncached(scheduler: str) -> Tensor:
    return denoise(_pipe(scheduler), NUM_STEPS, name=NAME)


def _upstream(scheduler: str, interval: int, branch: int) -> tuple[Tensor, tuple[int, ...]]:
    """The older package's output, and the calls on which it ran the mid block."""
    pipe, mid, calls = _pipe(scheduler), [], []
    pipe.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    pipe.unet.mid_block.resnets[0].register_forward_hook(lambda *_: mid.append(len(calls) - 1))
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    return denoise(pipe, NUM_STEPS, name=NAME), tuple(mid)


def _ours(scheduler: str, branch: int, **how: Any) -> Tensor:
    pipe = _pipe(scheduler)
    with cached(pipe, **how, **({} if "plan" in how else {"branch": branch})):
        return denoise(pipe, NUM_STEPS, name=NAME)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize(("scheduler", "interval"), [("ddim", 2), ("ddim", 3), ("plms", 3)])
def test_uniform_interval_equals_upstream(scheduler: str, interval: int, branch: int) -> None:
    theirs, full_steps = _upstream(scheduler, interval, branch)
    assert full_steps == uniform(_num_calls(scheduler), interval).full_steps
    assert torch.equal(_ours(scheduler, branch, interval=interval), theirs)
    assert not torch.equal(theirs, _uncached(scheduler))  # test of the test: something was cached


@pytest.mark.parametrize("interval", [1, 3, 4, 5, 7, 8])
def test_every_interval_but_two_equals_upstream_under_plms(interval: int) -> None:
    theirs, full_steps = _upstream("plms", interval, branch=1)
    assert full_steps == uniform(_num_calls("plms"), interval).full_steps
    assert torch.equal(_ours("plms", 1, interval=interval), theirs)


@pytest.mark.parametrize("branch", BRANCHES)
def test_upstream_at_interval_two_under_plms_is_another_plan(branch: int) -> None:
    """Where it is wrong it is so by the plan alone: on the plan that it follows, the outputs are equal again."""
    theirs, full_steps = _upstream("plms", 2, branch)
    assert full_steps == (0, 4, 6)
    assert uniform(_num_calls("plms"), 2).full_steps == (0, 2, 4, 6)
    assert torch.equal(_ours("plms", branch, plan=CachePlan(_num_calls("plms"), full_steps, branch)), theirs)
    assert not torch.equal(_ours("plms", branch, interval=2), theirs)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_interval_one_of_both_is_uncached(scheduler: str) -> None:
    theirs, full_steps = _upstream(scheduler, 1, branch=0)
    assert full_steps == tuple(range(_num_calls(scheduler)))
    assert torch.equal(theirs, _uncached(scheduler))
    assert torch.equal(_ours(scheduler, 0, interval=1), theirs)


def test_another_branch_is_told_apart() -> None:
    """Test of the test: neighbouring branches differ, so equality at every branch means the same numbering."""
    outputs = [_ours("ddim", branch, interval=3) for branch in BRANCHES]
    assert not any(torch.equal(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


def test_repeated_timestep_is_looked_up_as_the_call_before() -> None:
    """The reason, from the scheduler itself: only call 2 is found elsewhere than where it is."""
    scheduler = SCHEDULERS["plms"]()
    scheduler.set_timesteps(NUM_STEPS)
    timesteps = scheduler.timesteps.tolist()
    assert [timesteps.index(t) for t in timesteps] == [0, 1, 1, *range(3, _num_calls("plms"))]

"""Laws of whole pipelines. The oracle is the uncached or a fresh pipeline, bit for bit, or an exact count."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from inspect import signature
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from deepcache import DeepCacheError, UnsupportedUNetError, cached, uniform
from deepcache.costs.explain import explain
from deepcache.unets.diffusers.forward import full_forward, shallow_forward
from deepcache.unets.diffusers.views import Cut
from tests.cells import EXACT, verdict
from tests.pipelines import NAMES, Workload, counted, scheduler, workload
from tests.support import documented

# of diffusers
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
REFUSED = {
    "ControlNet-XS": "got a UNetControlNetXSModel",
    "self-attention guidance": "StableDiffusionSAGPipeline reads",
}
SUPPORTED = tuple(name for name in NAMES if name not in REFUSED)
BARE = tuple(name for name in SUPPORTED if name.startswith("unCLIP"))  # bare U-Nets, cached without a scheduler
ONE_CALL_A_STEP = tuple(name for name in SUPPORTED if name not in ("panorama", *BARE))
WITHOUT_GUIDANCE = ("DDPM", "DDIM")
WITH_CALLBACKS = (  # pipelines with callbacks that may change the prompt
    "text2img",
    "img2img",
    "inpaint",
    "inpaint, 9 channels",
    "ControlNet",
    "two ControlNets",
    "ControlNet img2img",
    "IP-Adapter",
    "SDXL text2img",
    "SDXL img2img",
    "SDXL base",
    "SDXL refiner",
    "AnimateDiff",
)


@cache
def _num_steps(name: str) -> int:
    """The number of steps that a pipeline makes if it is asked for six."""
    work = workload(name)
    with counted(work.unet) as ran:
        work.run(6)
    return len(ran) // work.calls


@pytest.mark.parametrize(
    ("way", "names"),
    [
        ("plain", SUPPORTED),  # laws 3, 5 and 6
        ("without guidance", [name for name in SUPPORTED if name not in WITHOUT_GUIDANCE]),
        ("two at once", [name for name in SUPPORTED if name != "text-to-video"]),
        ("guidance off midway", WITH_CALLBACKS),
        ("interrupted before", [*WITH_CALLBACKS, "PAG", "panorama"]),
    ],
)
def test_pipelines_are_exact(way: str, names: Iterable[str]) -> None:
    """docs/support.md says so; `test_support.py` compares that page with what each pipeline does."""
    found = documented("Pipelines")
    assert {name: found[name][way] for name in names} == dict.fromkeys(names, EXACT)


@pytest.mark.parametrize("name", REFUSED)
def test_other_pipeline_is_refused_by_name_before_anything_ran(name: str) -> None:
    work = workload(name)
    refused = pytest.raises(UnsupportedUNetError, match=REFUSED[name])
    with counted(work.unet) as ran, refused, cached(work.owner, interval=3):
        work.run()
    assert not ran


@pytest.mark.parametrize("name", SUPPORTED)
def test_generation_tells_its_steps_and_runs_before_do_not_change_its_image(name: str) -> None:  # laws 6 and 8
    work, fresh = workload(name), workload(name)
    with cached(fresh.owner, interval=3):
        expected = fresh.run(4, seed=1)
    with cached(work.owner, interval=3) as cache:
        with counted(work.unet) as ran:
            work.run(8, seed=2)
        assert torch.equal(work.run(4, seed=1), expected)
    assert not torch.equal(expected, fresh.run(4, seed=1))  # without a cache
    generation, num_steps = cache.generations[0], len(ran) // work.calls
    assert num_steps >= 4
    assert (generation.num_steps, generation.num_calls) == (num_steps, len(ran))
    assert generation.full_steps == tuple(range(0, num_steps, 3))
    assert ran == work.pattern(len(ran), 3)
    assert len(cache.generations) == 2


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        *((name, -1) for name in ONE_CALL_A_STEP),
        ("text2img", 1),
        ("SDXL base", 3),  # which stops after three of six steps
        ("panorama", 1),
        ("unCLIP, pipe.decoder", 1),
    ],
)
def test_plan_of_another_length_is_refused_before_the_unet_ran(name: str, difference: int) -> None:
    work = workload(name)
    num_steps = _num_steps(name)
    plan = uniform(num_steps + difference, 2)
    refused = pytest.raises(DeepCacheError, match=f"for {plan.num_steps} .* makes {num_steps}")
    with counted(work.unet) as ran, cached(work.owner, plan), refused:
        work.run(6)
    assert not ran


@pytest.mark.parametrize("name", SUPPORTED)
def test_plan_of_the_length_is_followed(name: str) -> None:
    work = workload(name)
    num_steps = _num_steps(name)
    with counted(work.unet) as ran, cached(work.owner, uniform(num_steps, 2, last_step_full=True)):
        work.run(6)
    assert ran == work.pattern(len(ran), 2, also_full=[num_steps - 1])


@pytest.mark.parametrize("name", ["text2img", "img2img", "SDXL base", "SDXL refiner"])
def test_last_step_is_full_where_an_interval_asks_for_it(name: str) -> None:
    work, num_steps = workload(name), _num_steps(name)
    with counted(work.unet) as ran, cached(work.owner, interval=4, last_step_full=True):
        work.run(6)
    assert ran == work.pattern(num_steps, 4, also_full=[num_steps - 1])


def test_every_round_of_free_init_is_a_generation() -> None:
    """With fast sampling, the last round has more steps than the rounds before."""
    work = workload("AnimateDiff")
    work.pipe.enable_free_init(num_iters=2, use_fast_sampling=True)
    expected = work.run(6)
    with cached(work.owner, interval=1):
        assert torch.equal(work.run(6), expected)
    with cached(work.owner, interval=2) as cache:
        work.run(6)
    assert [generation.full_steps for generation in cache.generations] == [(0, 2), (0, 2, 4)]


def test_inference_mode_is_as_no_grad() -> None:
    work = workload("text2img")
    with cached(work.owner, interval=3):
        expected = work.run()
    with torch.inference_mode(), counted(work.unet) as ran, cached(work.owner, interval=3):
        assert all(torch.equal(work.run(), expected) for _ in range(2))
    assert ran == 2 * work.pattern(5, 3)


@pytest.mark.parametrize("name", ["img2img", "SDXL img2img"])
@pytest.mark.parametrize("tenths", [1, 3, 8, 10])
def test_strength_leaves_the_full_steps_at_0_n_2n_of_those_that_run(name: str, tenths: int) -> None:
    _assert_strength(workload(name), tenths)


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
@pytest.mark.parametrize("tenths", [1, 7])
def test_the_same_under_solvers_that_repeat_timesteps(kind: str, tenths: int) -> None:
    _assert_strength(workload("img2img", scheduler(kind)), tenths)


def _assert_strength(work: Workload, tenths: int) -> None:
    strength, order = tenths / 10, work.pipe.scheduler.order
    with counted(work.unet) as ran:
        work.run(10, strength=strength)
    num_steps = len(ran)
    assert num_steps in {order * tenths, order * tenths - 1}  # a second-order solver ends with a first-order step
    for plan in ({"interval": 3}, {"plan": uniform(num_steps, 3)}):
        with counted(work.unet) as ran, cached(work.owner, **plan):
            work.run(10, strength=strength)
        assert ran == work.pattern(num_steps, 3)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("DDPMScheduler", {"timesteps": [900, 700, 650, 300, 20]}),
        ("EulerDiscreteScheduler", {"timesteps": [900, 700, 650, 300, 20]}),
        ("EulerDiscreteScheduler", {"sigmas": [14.0, 5.0, 2.0, 0.5]}),
        ("DPMSolverMultistepScheduler", {"timesteps": [900, 700, 650, 300, 20]}),
    ],
)
def test_users_own_timesteps_are_steps_like_others(kind: str, given: dict[str, Any]) -> None:
    work = workload("text2img", scheduler(kind))
    assert verdict(work, (2, 3), **given) == EXACT


@pytest.mark.parametrize(("kind", "num_calls"), [("DDIMScheduler", 3), ("HeunDiscreteScheduler", 2)])
def test_calls_of_a_step_apart_each_have_a_feature_of_their_own(kind: str, num_calls: int) -> None:
    """As conditional and unconditional calls one after the other. Oracle: the kernel, called by hand for each call."""
    pipe = workload("text2img", scheduler(kind)).pipe
    cut = Cut.of(pipe.unet, 1)
    contexts = torch.randn((num_calls, 1, 5, 8), generator=torch.Generator().manual_seed(3))

    def by_hand(streams: list[int]) -> Tensor:
        """`streams` tells the call whose feature each call takes."""
        features: list[Any] = [None] * num_calls

        def call(sample: Tensor, t: Tensor, turn: int, step: int) -> Tensor:
            if step % 3 == 0:
                output, features[turn] = full_forward(pipe.unet, cut, sample, t, contexts[turn])
                return output.sample
            return shallow_forward(pipe.unet, cut, features[streams[turn]], sample, t, contexts[turn]).sample

        return denoised(call)

    def denoised(call: Any) -> Tensor:
        pipe.scheduler.set_timesteps(4)
        sample = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(4))
        for step, t in enumerate(pipe.scheduler.timesteps):
            scaled = pipe.scheduler.scale_model_input(sample, t)
            noise = sum((-1.0) ** turn * call(scaled, t, turn, step) for turn in range(num_calls))
            sample = pipe.scheduler.step(noise, t, sample).prev_sample
        return sample

    expected = by_hand(list(range(num_calls)))
    with cached(pipe, interval=3, branch=1, order=0) as cache:
        found = denoised(lambda sample, t, turn, _: pipe.unet(sample, t, contexts[turn]).sample)
    assert torch.equal(found, expected)
    generation, num_steps = cache.generations[-1], len(pipe.scheduler.timesteps)
    assert (generation.num_steps, generation.num_calls) == (num_steps, num_steps * num_calls)
    assert generation.full_steps == tuple(range(0, num_steps, 3))
    assert not torch.equal(expected, by_hand([0] * num_calls))  # test of the test: one feature for all


def test_all_unets_of_unclip_are_cached_each_in_a_block_of_its_own() -> None:
    work = workload("unCLIP, pipe.decoder")
    pipe = work.pipe
    expected = work.run()
    with cached(pipe.decoder, interval=1), cached(pipe.super_res_first, interval=1):
        assert torch.equal(work.run(), expected)
    with cached(pipe.decoder, interval=2) as decoder, cached(pipe.super_res_first, interval=2) as first:
        found = [work.run(seed=seed) for seed in (0, 1, 0)]
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], expected)
    assert [g.full_steps for g in decoder.generations] == [(0, 2, 4)] * 3
    assert [g.full_steps for g in first.generations] == [(0,)] * 3  # the second makes the last of three steps


def test_pipeline_without_unet_is_refused_by_a_line_that_names_the_unets_that_it_has() -> None:
    pipe = workload("unCLIP, pipe.decoder").pipe
    calls = ", ".join(
        f"deepcache.cached(pipe.{name}, interval=N)" for name in ("decoder", "super_res_first", "super_res_last")
    )
    for act in (lambda: cached(pipe, interval=3).__enter__(), lambda: explain(pipe, 3, 50)):
        with pytest.raises(UnsupportedUNetError, match=f"got a UnCLIPPipeline; cache .*: {re.escape(calls)}$"):
            act()


def _without_unet() -> list[str]:
    """diffusers' pipelines whose constructor takes no `unet`."""
    found = []
    for name in dir(diffusers):
        kind = getattr(diffusers, name) if name.endswith("Pipeline") else None
        is_pipeline = isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)
        if is_pipeline and "unet" not in signature(kind.__init__).parameters:
            found.append(name)
    return found


def test_every_other_pipeline_of_diffusers_is_refused_by_name() -> None:
    names = _without_unet()
    assert {"FluxPipeline", "StableCascadeCombinedPipeline", "WuerstchenPriorPipeline", "ShapEPipeline"} <= set(names)
    for name in names:
        kind = getattr(diffusers, name)
        with pytest.raises(UnsupportedUNetError, match=f"got a {name}, which has none$"):
            cached(kind.__new__(kind), interval=3).__enter__()

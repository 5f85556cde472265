"""What one generation of `cached` keeps and tells. The oracle is a fresh run, bit for bit, or an exact count."""

from __future__ import annotations

import gc
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from problems import CONTEXT_DIM, SCHEDULERS, Aborted, aborting, inputs, latents, pipeline, staged, unet
from torch import Tensor

from deepcache import DeepCacheError, cached, quadratic, uniform
from deepcache.forward import full_forward
from deepcache.macs import cost


@pytest.mark.parametrize("call", [0, 1, 2, 3])
def test_aborted_generation_leaks_nothing_into_the_next(call: int) -> None:
    with cached(fresh := pipeline(), interval=3):
        expected = latents(fresh, seed=1)
    pipe = pipeline()
    with cached(pipe, interval=3) as cache:
        with pytest.raises(Aborted), aborting(pipe.unet, call):
            latents(pipe)
        assert torch.equal(latents(pipe, seed=1), expected)
    assert cache.generations[-1].full_steps == (0, 3)
    assert [generation.num_steps for generation in cache.generations] == ([call, 5] if call else [5])


def test_generation_tells_what_it_did() -> None:
    pipe, plan = pipeline(), quadratic(8, 3, center=3, power=1.4, branch=2)
    with cached(pipe, plan) as cache:
        latents(pipe, num_steps=8)
    (generation,) = cache.generations
    channels = full_forward(staged("ldm-4-g"), 2, *inputs("ldm-4-g")[0])[1].shape[1]
    assert (generation.num_steps, generation.full_steps) == (8, plan.full_steps)
    assert generation.macs == round(
        cost(unet("ldm-4-g"), *inputs("ldm-4-g", batch=1)[0][:2], torch.empty(1, 1, CONTEXT_DIM)).mean(plan)
    )
    assert generation.feature_bytes == 4 * channels * 8 * 8 * torch.float32.itemsize  # two images, guided
    assert all(type(value) is int for value in (generation.macs, generation.feature_bytes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_generation_of_another_type_costs_the_same(dtype: torch.dtype) -> None:
    model, (args, _) = unet("ddpm"), inputs("ddpm")
    plan = uniform(2, 2)
    with cached(model.to(dtype), plan) as cache:
        for _ in range(2):
            model(args[0].to(dtype), args[1])
    assert cache.generations[0].macs == round(cost(unet("ddpm"), *args).mean(plan))


def test_setting_timesteps_begins_a_generation() -> None:
    pipe, expected = pipeline(), []
    for num_steps in (4, 5):
        with cached(fresh := pipeline(), interval=3):
            expected.append(latents(fresh, num_steps=num_steps))
    with cached(pipe, interval=3) as cache:
        found = [latents(pipe, num_steps=num_steps) for num_steps in (4, 5)]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [(g.num_steps, g.full_steps) for g in cache.generations] == [(4, (0, 3)), (5, (0, 3))]


@pytest.mark.parametrize(("scheduler", "calls"), [("plms", 5), ("pndm", 13), ("heun", 7), ("ddim", 4), ("euler", 4)])
def test_step_is_a_call_of_the_unet(scheduler: str, calls: int) -> None:
    """Timesteps repeat there: PLMS makes 51 calls for 50 steps, Heun's solver two a step but the last."""
    pipe = pipeline(SCHEDULERS[scheduler]())
    with cached(pipe, interval=2) as cache:
        latents(pipe, num_steps=4)
    assert cache.generations[0].num_steps == calls
    assert cache.generations[0].full_steps == uniform(calls, 2).full_steps
    with cached(pipe, uniform(calls, 2)) as by_plan:
        latents(pipe, num_steps=4)
    assert by_plan.generations == cache.generations


@pytest.mark.parametrize("changed", [{"size": (16, 8)}, {"batch": 3}], ids=["size", "batch"])
def test_changed_input_makes_a_step_full(changed: dict[str, Any]) -> None:
    model, (args, kwargs) = unet("ddpm-classes"), inputs("ddpm-classes")
    other, other_kwargs = inputs("ddpm-classes", **changed)
    expected = model(*other, **other_kwargs).sample
    with cached(model, interval=9) as cache:
        for _ in range(2):
            model(*args, **kwargs)
        assert torch.equal(model(*other, **other_kwargs).sample, expected)
        assert torch.equal(model(*other, **other_kwargs).sample, expected)
    assert cache.generations[0].full_steps == (0, 2)


def test_changed_type_makes_a_step_full() -> None:
    model, ((sample, t), _) = unet("ddpm"), inputs("ddpm")
    expected = unet("ddpm").double()(sample.double(), t).sample
    with cached(model, interval=9):
        model(sample, t)
        model.double()
        assert torch.equal(model(sample.double(), t).sample, expected)


def test_appearing_optional_input_makes_a_step_full() -> None:
    model, (args, _) = unet("no-attention"), inputs("no-attention")
    mask = {"encoder_attention_mask": torch.ones(2, 5)}
    with cached(model, interval=9) as cache:
        for kwargs in ({}, {}, mask, mask, {}):
            model(*args, **kwargs)
    assert cache.generations[0].full_steps == (0, 2, 4)


def test_generation_of_one_size_costs_the_same_after_one_of_two_sizes() -> None:
    model, small, large = unet("ddpm"), inputs("ddpm")[0], inputs("ddpm", size=(16, 16))[0]
    with cached(model, interval=9) as cache:
        model(*small)
        model(*large)
        cache.reset()
        model(*large)
    assert cache.generations[1].macs == cost(model, *large).full()


def test_reset_begins_a_generation_of_a_bare_unet() -> None:
    model, (args, kwargs) = unet("ddpm"), inputs("ddpm")
    expected = model(*args, **kwargs).sample
    with cached(model, interval=4) as cache:
        for seed in (1, 2):
            model(*inputs("ddpm", seed=seed)[0])
        cache.reset()
        assert torch.equal(model(*args, **kwargs).sample, expected)
    assert [generation.full_steps for generation in cache.generations] == [(0,), (0,)]


def test_longer_plan_is_refused_before_anything_ran() -> None:
    pipe, calls = pipeline(), []
    for module in pipe.unet.modules():
        if module is not pipe.unet:
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    with (
        cached(pipe, uniform(6, 2)),
        pytest.raises(DeepCacheError, match="for 6 U-Net calls and this generation makes 5"),
    ):
        latents(pipe, num_steps=5)
    assert not calls


def test_call_beyond_the_plan_is_refused() -> None:
    pipe = pipeline()
    with (
        cached(pipe, uniform(4, 2)),
        pytest.raises(DeepCacheError, match="expected 4 U-Net calls in this generation, and this is one more"),
    ):
        latents(pipe, num_steps=5)
    model, (args, _) = unet("ddpm"), inputs("ddpm")
    with cached(model, uniform(1, 1)) as cache:
        model(*args)
        with pytest.raises(DeepCacheError, match=r"cache\.reset\(\)"):
            model(*args)
        cache.reset()
        model(*args)


@pytest.mark.parametrize("num_steps", [3, 5, 6])
def test_plan_is_for_the_steps_after_the_begin_index(num_steps: int) -> None:
    """As image-to-image does: four of six timesteps are left, and a plan for another number is refused."""
    model, ((sample, _), _) = unet("ddpm"), inputs("ddpm")
    pipe = SimpleNamespace(unet=model, scheduler=EulerDiscreteScheduler())
    pipe.scheduler.set_timesteps(6)
    pipe.scheduler.set_begin_index(2)
    with cached(pipe, uniform(4, 3)) as cache:
        for t in pipe.scheduler.timesteps[2:]:
            model(sample, t)
    assert cache.generations[0].full_steps == (0, 3)
    with cached(pipe, uniform(num_steps, 3)), pytest.raises(DeepCacheError, match="this generation makes 4"):
        model(sample, 1)


def test_threads_on_one_unet_keep_their_own_generations() -> None:  # law 8
    model, found = unet("ddpm"), {}
    turns = threading.Barrier(2, timeout=60)

    def loop(seed: int, *, alone: bool) -> Tensor:
        (sample, _), _ = inputs("ddpm", seed=seed)
        for t in (900, 600, 300, 100, 50):
            if not alone:
                turns.wait()
            sample = sample - 0.3 * model(sample, t).sample
        return sample

    with cached(model, interval=3) as cache:
        expected = {}
        for seed in (1, 2):
            expected[seed] = loop(seed, alone=True)
            cache.reset()
        threads = [threading.Thread(target=lambda s=s: found.update({s: loop(s, alone=False)})) for s in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    torch.testing.assert_close(dict(sorted(found.items())), expected, rtol=0, atol=0)
    assert [generation.full_steps for generation in cache.generations] == [(0, 3)] * 4


@pytest.mark.parametrize("in_thread", [False, True])
def test_no_feature_outlives_its_generation_or_the_block(monkeypatch: pytest.MonkeyPatch, in_thread: bool) -> None:  # noqa: FBT001
    model, (args, _), features = unet("ddpm"), inputs("ddpm"), []

    def spy(*given: Any, **more: Any) -> Any:
        output, feature = full_forward(*given, **more)
        features.append(weakref.ref(feature))
        return output, feature

    def generations() -> None:
        for _ in range(2):
            pipe.scheduler.set_timesteps(2)  # of which one is made: the generation is not over
            model(*args)

    monkeypatch.setattr("deepcache.caching.full_forward", spy)
    pipe = SimpleNamespace(unet=model, scheduler=DDIMScheduler())
    with cached(pipe, interval=2) as cache:
        if in_thread:
            thread = threading.Thread(target=generations)
            thread.start()
            thread.join()
        else:
            generations()
        assert [feature() is None for feature in features] == [True, False]
    gc.collect()
    assert [feature() is None for feature in features] == [True, True]
    assert len(cache.generations) == 2


def test_another_pipeline_on_the_unet_is_refused_until_a_reset() -> None:
    first, second = pipeline(), pipeline()
    second.unet = first.unet
    with cached(pipeline_alone := pipeline(), interval=9):
        expected = latents(pipeline_alone, seed=2)
    with cached(first, interval=9) as cache:
        latents(first, seed=1)
        with pytest.raises(DeepCacheError, match=r"another pipeline on this U-Net"):
            latents(second, seed=2)
        cache.reset()
        assert torch.equal(latents(second, seed=2), expected)


def test_conditional_and_unconditional_calls_apart_are_refused() -> None:
    pipe = pipeline()
    (sample, _, *rest), kwargs = inputs("ldm-4-g")
    with cached(pipe, interval=2):
        pipe.scheduler.set_timesteps(4)
        t = pipe.scheduler.timesteps[0]
        for _ in range(4):
            pipe.unet(sample, t, *rest, **kwargs)
        with pytest.raises(DeepCacheError, match="twice a step"):
            pipe.unet(sample, t, *rest, **kwargs)


def test_feature_is_dropped_with_the_last_step() -> None:
    pipe = pipeline()
    with cached(pipe, interval=2) as cache:
        latents(pipe)
        assert cache._current().feature is None

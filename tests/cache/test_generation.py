"""What a cache keeps and tells of one generation. The oracle is a fresh run, bit for bit, or an exact count."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from peft import LoraConfig
from torch import Tensor

from deepcache import DeepCacheError, UnsupportedUNetError, cached, quadratic, uniform
from deepcache.cache.tracking import MOST_REMEMBERED
from deepcache.costs.macs import cost
from deepcache.unets.diffusers.forward import full_forward
from deepcache.unets.diffusers.views import Cut
from deepcache.unets.structure import Structure
from tests.problems import (
    CONTEXT_DIM,
    SCHEDULERS,
    TIMESTEPS,
    Aborted,
    aborting,
    inputs,
    latents,
    loop,
    pipeline,
    shared,
    unet,
)


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
    pipe, plan = pipeline(), quadratic(8, 3, center=3, power=1.4, branch=2, order=0)
    with cached(pipe, plan) as cache:
        latents(pipe, num_steps=8)
    (generation,) = cache.generations
    (feature,) = full_forward(pipe.unet, Cut.of(pipe.unet, 2), *inputs("ldm-4-g")[0])[1]
    assert (generation.num_steps, generation.num_calls, generation.full_steps) == (8, 8, plan.full_steps)
    assert generation.macs == round(
        cost(pipe.unet, *inputs("ldm-4-g", batch=1)[0][:2], torch.empty(1, 1, CONTEXT_DIM)).mean(plan)
    )
    assert generation.feature_bytes == 4 * feature[0].numel() * torch.float32.itemsize  # two images, guided
    assert all(type(value) is int for value in (generation.macs, generation.feature_bytes))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_as_many_features_are_kept_as_the_order_and_one(order: int) -> None:
    model = unet("ddpm")
    with cached(model, interval=1, order=order) as cache:
        loop(model)
    one = full_forward(model, Cut.of(model, 0), *inputs("ddpm")[0])[1][0]
    assert cache.generations[0].feature_bytes == (order + 1) * one.numel() * one.element_size()


@pytest.mark.parametrize("how", ["kept", "pickled"])
def test_generation_outlives_its_unet_and_keeps_it_not_alive(how: str) -> None:
    model, (sample, _) = unet("ddpm"), inputs("ddpm")[0]
    expected, alive = round(cost(model, sample, 701).mean(uniform(5, 3))), weakref.ref(model)
    with cached(model, interval=3) as cache:
        loop(model)
    (generation,) = cache.generations
    if how == "pickled":
        generation = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(generation))))
    del model, cache
    gc.collect()
    assert alive() is None
    assert (generation.full_steps, generation.macs) == ((0, 3), expected)


def test_earlier_generation_costs_what_its_unet_did_before_lora_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is `cost` on each kind of U-Net; the broken variant takes the structure of the U-Net only once."""
    name = "no-mid"
    bare, adapted = unet(name), unet(name)
    (sample, _, context), _ = inputs(name)
    lora = LoraConfig(r=2, target_modules=["to_q", "to_k"])
    adapted.add_adapter(lora)
    expected = [cost(each, sample, 1, context).full() for each in (bare, adapted, bare)]
    assert expected[0] != expected[1]

    def found() -> list[int]:
        model = unet(name)
        with cached(model, interval=3) as cache:
            model(sample, TIMESTEPS[0], context)
            for change in (lambda: model.add_adapter(lora), model.disable_adapters):
                change()
                cache.reset()
                model(sample, TIMESTEPS[0], context)
        return [generation.macs for generation in cache.generations]

    assert found() == expected
    monkeypatch.setattr("deepcache.cache.tracking.structure_of", partial(_first_structure, {}))
    assert found() != expected


def _first_structure(known: dict[str, Any], model: Any) -> Any:
    return known.setdefault("structure", Structure(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_generation_of_another_type_costs_the_same(dtype: torch.dtype) -> None:
    model, (args, _) = unet("ddpm"), inputs("ddpm")
    with cached(model.to(dtype), plan := uniform(6, 2)) as cache:
        for t in range(900, 300, -100):
            model(args[0].to(dtype), t)
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
    """Timesteps repeat: PLMS makes 51 calls for 50 steps, and Heun makes two calls for all steps but the last."""
    pipe = pipeline(SCHEDULERS[scheduler]())
    with cached(pipe, interval=2) as cache:
        latents(pipe, num_steps=4)
    (generation,) = cache.generations
    assert generation.num_steps == generation.num_calls == calls
    assert generation.full_steps == tuple(range(0, calls, 2))
    with cached(pipe, uniform(calls, 2)):
        latents(pipe, num_steps=4)


@pytest.mark.parametrize("changed", [{"batch": 1}, {"size": (16, 8)}])
def test_changed_shape_makes_a_step_full(changed: dict[str, Any]) -> None:
    model, (args, _), (other, _) = unet("ddpm"), inputs("ddpm"), inputs("ddpm", **changed)
    with cached(model, interval=9) as cache:
        for t in TIMESTEPS[:2]:
            model(args[0], t)
        assert torch.equal(model(other[0], TIMESTEPS[2]).sample, shared("ddpm")(other[0], TIMESTEPS[2]).sample)
        assert model(other[0], TIMESTEPS[3]).sample.shape == other[0].shape
    assert cache.generations[0].full_steps == (0, 2)


@pytest.mark.parametrize("order", [1, 2])
def test_changed_shape_forgets_the_features_of_the_other(order: int) -> None:
    """After the change, predictions use features of the new shape alone."""
    model, (small, _), (large, _) = unet("ddpm"), inputs("ddpm"), inputs("ddpm", size=(16, 8))
    with cached(model, interval=2, order=order) as cache:
        expected = [model(large[0], t).sample for t in TIMESTEPS]
        cache.reset()
        timesteps = torch.tensor([990, 980, 970, *TIMESTEPS])
        for t in timesteps[:3]:
            model(small[0], t)
        found = [model(large[0], t).sample for t in timesteps[3:]]
    assert cache.generations[1].full_steps == (0, 2, 3, 4, 6)
    assert torch.equal(found[0], expected[0])
    assert all(image.isfinite().all() for image in found)


def test_changed_type_makes_a_step_full() -> None:
    model, (sample, _) = unet("ddpm"), inputs("ddpm")[0]
    expected = unet("ddpm").double()(sample.double(), TIMESTEPS[1]).sample
    with cached(model, interval=9):
        model(sample, TIMESTEPS[0])
        model.double()
        assert torch.equal(model(sample.double(), TIMESTEPS[1]).sample, expected)


def test_appearing_optional_input_makes_a_step_full() -> None:
    model, ((sample, _, context), _) = unet("no-attention"), inputs("no-attention")
    mask = {"encoder_attention_mask": torch.ones(2, 5)}
    with cached(model, interval=9) as cache:
        for t, kwargs in zip(TIMESTEPS, ({}, {}, mask, mask, {}), strict=True):
            model(sample, t, context, **kwargs)
    assert cache.generations[0].full_steps == (0, 2, 4)


def test_generation_of_one_size_costs_the_same_after_one_of_two_sizes() -> None:
    model, small, large = unet("ddpm"), inputs("ddpm")[0], inputs("ddpm", size=(16, 16))[0]
    with cached(model, interval=9) as cache:
        model(small[0], TIMESTEPS[0])
        model(large[0], TIMESTEPS[1])
        cache.reset()
        model(large[0], TIMESTEPS[0])
    assert cache.generations[1].macs == cost(model, *large).full()


def test_reset_begins_a_generation_of_a_bare_unet() -> None:
    model, (sample, _) = unet("ddpm"), inputs("ddpm")[0]
    expected = model(sample, 701).sample
    with cached(model, interval=4, num_steps=9) as cache:
        for t in (999, 998):
            model(2 * sample, t)
        cache.reset()
        assert torch.equal(model(sample, 701).sample, expected)
    assert [generation.full_steps for generation in cache.generations] == [(0,), (0,)]


@pytest.mark.parametrize("planned", [4, 6])
def test_plan_of_another_length_is_refused_before_anything_ran(planned: int) -> None:
    pipe, calls = pipeline(), []
    for module in (pipe.unet.time_embedding, pipe.unet.conv_in, pipe.unet.mid_block):
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    with (
        cached(pipe, uniform(planned, 2)),
        pytest.raises(DeepCacheError, match=f"for {planned} .* and this generation makes 5"),
    ):
        latents(pipe, num_steps=5)
    assert not calls


def test_step_beyond_the_plan_is_refused() -> None:
    """Nothing tells the number of steps before: the timesteps are numbers, or another scheduler's."""
    model, (sample, _) = unet("ddpm"), inputs("ddpm")[0]
    with cached(model, uniform(5, 2)) as cache:
        for timesteps in ([*range(900, 0, -150)], torch.arange(900, 0, -150)):
            for t in timesteps[:5]:
                model(sample, t)
            with pytest.raises(DeepCacheError, match="expected 5 steps in this generation") as caught:
                model(sample, timesteps[5])
            assert "\n" not in str(caught.value)
            cache.reset()


@pytest.mark.parametrize("beyond", [0, 100], ids=["a number that is no timestep", "the last timestep again"])
def test_number_that_does_not_go_on_in_the_schedule_is_refused(beyond: int) -> None:
    pipe, (sample, _) = SimpleNamespace(unet=unet("ddpm"), scheduler=DDIMScheduler()), inputs("ddpm")[0]
    pipe.scheduler.set_timesteps(5)
    numbers = pipe.scheduler.timesteps.tolist()
    with cached(pipe, interval=2) as cache:
        for t in numbers:
            pipe.unet(sample, t)
        with pytest.raises(DeepCacheError, match=r"calls_per_step") as caught:
            pipe.unet(sample, numbers[-1] if beyond else 1)
        assert "\n" not in str(caught.value)
        pipe.scheduler.set_timesteps(5)
        pipe.unet(sample, numbers[0])
    assert [generation.num_steps for generation in cache.generations] == [5, 1]


@pytest.mark.parametrize("num_steps", [3, 5, 6])
def test_plan_is_for_the_steps_after_the_begin_index(num_steps: int) -> None:
    """Image-to-image does this: four of six timesteps are left, and a plan for another number is refused."""
    model, ((sample, _), _) = unet("ddpm"), inputs("ddpm")
    pipe = SimpleNamespace(unet=model, scheduler=EulerDiscreteScheduler())
    for begin_index in (2, 1, 2):  # another strength: a generation of its own
        pipe.scheduler.set_timesteps(4 + begin_index)
        pipe.scheduler.set_begin_index(begin_index)
        with cached(pipe, uniform(4, 3)) as cache:
            for t in pipe.scheduler.timesteps[begin_index:]:
                model(sample, t)
        assert cache.generations[0].full_steps == (0, 3)
    with cached(pipe, uniform(num_steps, 3)), pytest.raises(DeepCacheError, match="this generation makes 4"):
        model(sample, pipe.scheduler.timesteps[2])


def test_last_step_is_full_where_the_scheduler_tells_it_and_refused_where_not() -> None:
    pipe = pipeline()
    with cached(pipe, interval=4, last_step_full=True) as cache:
        latents(pipe, num_steps=7)
        latents(pipe, num_steps=5)
    assert [g.full_steps for g in cache.generations] == [(0, 4, 6), (0, 4)]
    model, (args, _) = unet("ddpm"), inputs("ddpm")
    with (
        cached(model, interval=4, last_step_full=True),
        pytest.raises(DeepCacheError, match="last_step_full with an interval needs the number of steps"),
    ):
        model(args[0], TIMESTEPS[0])


@pytest.mark.parametrize("in_thread", [False, True])
def test_no_feature_outlives_its_generation_or_the_block(monkeypatch: pytest.MonkeyPatch, in_thread: bool) -> None:  # noqa: FBT001
    """Both generations are stopped after their first step."""
    features: list[weakref.ref[Tensor]] = []
    _watch(monkeypatch, features)
    model = unet("ddpm")

    def generations() -> None:
        for _ in range(2):
            loop(model, torch.tensor([900, 600])[:1])

    with cached(model, interval=2) as cache:
        if in_thread:
            thread = threading.Thread(target=generations)
            thread.start()
            thread.join()
        else:
            generations()
        gc.collect()
        assert [feature() is None for feature in features] == [
            True,
            in_thread,
        ]  # a thread that died cannot go on
    gc.collect()
    assert [feature() is None for feature in features] == [True, True]
    assert len(cache.generations) == 2


def test_features_are_dropped_with_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    features: list[weakref.ref[Tensor]] = []
    _watch(monkeypatch, features)
    pipe = pipeline()
    with cached(pipe, interval=2, order=1):
        latents(pipe)
        gc.collect()
        assert [feature() for feature in features] == [None] * 3


def _watch(monkeypatch: pytest.MonkeyPatch, features: list[weakref.ref[Tensor]]) -> None:
    def spy(*given: Any, **more: Any) -> Any:
        output, feature = full_forward(*given, **more)
        features.append(weakref.ref(feature[0]))
        return output, feature

    monkeypatch.setattr("deepcache.unets.diffusers.forward.full_forward", spy)


def test_last_generations_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_REMEMBERED == 1000
    monkeypatch.setattr("deepcache.cache.tracking.MOST_REMEMBERED", 10)
    model, (args, _) = unet("ddpm"), inputs("ddpm", size=(4, 4), batch=1)
    with cached(model, interval=9) as cache:
        for number in range(11):
            for t in TIMESTEPS[: 1 if number else 3]:
                model(args[0], t)
            cache.reset()
    assert [g.num_calls for g in cache.generations] == [1] * 10


@pytest.mark.parametrize("order", [0, 1])
def test_a_loss_may_be_followed_back_at_every_step(order: int) -> None:
    """Guidance by a loss does this. A kept feature is a constant, so no step needs the graph of another step."""
    model, (sample, _) = unet("ddpm"), inputs("ddpm")[0]
    with cached(model, interval=2, order=order) as cache, torch.enable_grad():
        for t in torch.tensor([900, 700, 500, 300]):
            image = sample.clone().requires_grad_()
            model(image, t).sample.square().sum().backward()
            assert image.grad is not None
            assert image.grad.abs().sum() > 0
    assert cache.generations[0].full_steps == (0, 2)


def test_what_cannot_run_without_data_tells_its_steps_and_no_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    """xformers' attention is an example, since it runs on CUDA alone."""

    def cost_of(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`\non device meta")

    monkeypatch.setattr("deepcache.costs.macs.counted", cost_of)
    model, (sample, _) = unet("ddpm"), inputs("ddpm")[0]
    with cached(model, interval=2) as cache:
        model(sample, torch.tensor([900, 700])[0])
    (generation,) = cache.generations
    assert generation.full_steps == (0,)
    with pytest.raises(
        UnsupportedUNetError, match=r"does not run without data.*\(No operator found.*attention processor"
    ):
        _ = generation.macs

"""Laws of `cached`. The oracle is the uncached U-Net or a fresh run; the same operations run, so bit for bit."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from problems import denoise, inputs, latents, num_branches, pipeline, staged, unet
from torch import Tensor, nn

from deepcache import CachePlan, DeepCacheError, UnsupportedUNetError, cached, quadratic, uniform
from deepcache.forward import full_forward, shallow_forward
from deepcache.macs import cost

# diffusers' schedulers of Karras' family hand torch tensors to numpy in a way that numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "plms": lambda: PNDMScheduler(skip_prk_steps=True),
    "pndm": PNDMScheduler,
    "dpm-solver++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
}


class Aborted(Exception):  # noqa: N818
    """Stands for a user who stops a generation."""


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
    model, calls, feature = staged(name), iter(range(5)), torch.empty(0)

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
    with pytest.raises(Aborted), cached(pipe, interval=2), _aborting(pipe.unet, call):
        latents(pipe)
    _assert_own_forward(pipe.unet)
    assert torch.equal(latents(pipe), expected)


@pytest.mark.parametrize("call", [0, 1, 2, 3])
def test_aborted_generation_leaks_nothing_into_the_next(call: int) -> None:
    with cached(fresh := pipeline(), interval=3):
        expected = latents(fresh, seed=1)
    pipe = pipeline()
    with cached(pipe, interval=3) as cache:
        with pytest.raises(Aborted), _aborting(pipe.unet, call):
            latents(pipe)
        assert torch.equal(latents(pipe, seed=1), expected)
    assert cache.generations[-1].full_steps == (0, 3)
    assert [generation.num_steps for generation in cache.generations if generation.num_steps] == ([call, 5] if call else [5])


def test_generation_tells_what_it_did() -> None:
    pipe, plan = pipeline(), quadratic(8, 3, center=3, power=1.4, branch=2)
    with cached(pipe, plan) as cache:
        latents(pipe, num_steps=8)
    (generation,) = cache.generations
    channels = full_forward(staged("ldm-4-g"), 2, *inputs("ldm-4-g")[0])[1].shape[1]
    assert (generation.num_steps, generation.full_steps) == (8, plan.full_steps)
    assert generation.macs == round(cost(unet("ldm-4-g"), *inputs("ldm-4-g", batch=1)[0][:2], _one_token()).mean(plan))
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


@pytest.mark.parametrize(
    "changed",
    [{"size": (16, 8)}, {"batch": 3}, {"timestep": torch.tensor(701)}, {"return_dict": True}],
    ids=lambda changed: next(iter(changed)),
)
def test_changed_input_makes_a_step_full(changed: dict[str, Any]) -> None:
    model, (args, kwargs) = unet("ddpm-classes"), inputs("ddpm-classes")
    extra = {"return_dict": True} if "return_dict" in changed else {}
    other, other_kwargs = inputs("ddpm-classes", **({} if extra else changed))
    expected = model(*other, **other_kwargs).sample
    with cached(model, interval=9) as cache:
        for _ in range(2):
            model(*args, **kwargs)
        assert torch.equal(model(*other, **other_kwargs, **extra).sample, expected)
        assert torch.equal(model(*other, **other_kwargs, **extra).sample, expected)
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
    with cached(pipe, uniform(6, 2)), pytest.raises(DeepCacheError, match="for 6 U-Net calls and this generation makes 5"):
        latents(pipe, num_steps=5)
    assert not calls


def test_call_beyond_the_plan_is_refused() -> None:
    pipe = pipeline()
    with cached(pipe, uniform(4, 2)), pytest.raises(DeepCacheError, match="for 4 U-Net calls and this is call 5"):
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


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickle"])
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
def test_no_feature_outlives_the_block(monkeypatch: pytest.MonkeyPatch, in_thread: bool) -> None:  # noqa: FBT001
    model, (args, _), features = unet("ddpm"), inputs("ddpm"), []

    def spy(*given: Any, **more: Any) -> Any:
        output, feature = full_forward(*given, **more)
        features.append(weakref.ref(feature))
        return output, feature

    monkeypatch.setattr("deepcache.caching.full_forward", spy)
    with cached(model, interval=2) as cache:
        thread = threading.Thread(target=model, args=args)
        start = thread.run if not in_thread else thread.start
        start()
        if in_thread:
            thread.join()
        del thread, start
    gc.collect()
    assert [feature() for feature in features] == [None]
    assert len(cache.generations) == 1


def test_pipelines_that_share_a_unet_leak_nothing() -> None:
    """Design's contract: the other pipeline's scheduler sets its own timesteps, so a generation begins."""
    first, second = pipeline(), pipeline()
    second.unet = first.unet
    with cached(pipeline_alone := pipeline(), interval=9):
        expected = latents(pipeline_alone, seed=2)
    with cached(first, interval=9):
        latents(first, seed=1)
        assert torch.equal(latents(second, seed=2), expected)


def _assert_own_forward(model: nn.Module) -> None:
    assert "forward" not in vars(model)
    assert model.forward.__func__ is type(model).forward


def _aborting(model: nn.Module, call: int) -> Any:
    """Inside its block, call number `call` of the U-Net stops before its last convolution."""
    calls = iter(range(100))

    def stop(*_: Any) -> None:
        if next(calls) == call:
            raise Aborted

    return model.conv_out.register_forward_pre_hook(stop)


def _one_token() -> Tensor:
    return torch.empty(1, 1, 8)

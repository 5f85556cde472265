"""What this package does where the older package `DeepCache` 0.1.1 goes wrong (docs/older_package.md).

`test_upstream.py` has the cases in which both are right. A right image equals the same generation alone, bit for bit.
"""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler
from torch import Tensor, nn

from deepcache import cached, uniform
from tests.cache import test_upstream
from tests.problems import SCHEDULERS, Aborted, aborting, inputs, unet
from tests.topologies import blocks

NUM_STEPS = 7


def _pipe(name: str = "ddpm", scheduler: str = "ddim") -> SimpleNamespace:
    return SimpleNamespace(unet=unet(name), scheduler=SCHEDULERS[scheduler]())


def _theirs(pipe: Any, interval: int = 3, branch: int = 0) -> DeepCacheSDHelper:
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    return helper


def _image(pipe: Any, num_steps: int = NUM_STEPS, *, seed: int = 0, begin: int = 0, **changed: Any) -> Tensor:
    """Call the U-Net as a pipeline does; image-to-image begins at step `begin`."""
    sample = inputs("ddpm", seed=seed, **changed)[0][0]
    pipe.scheduler.set_timesteps(num_steps)
    for t in pipe.scheduler.timesteps[begin:]:
        noise = pipe.unet(pipe.scheduler.scale_model_input(sample, t), t).sample
        sample = pipe.scheduler.step(noise, t, sample).prev_sample
    return sample


def _full_steps(pipe: Any, run: Callable[[], Any]) -> tuple[int, ...]:
    """Return the U-Net calls of a run that ran the mid block."""
    calls: list[int] = []
    full: list[int] = []
    handles = [
        pipe.unet.conv_in.register_forward_hook(lambda *_: calls.append(1)),
        pipe.unet.mid_block.resnets[0].register_forward_hook(lambda *_: full.append(len(calls) - 1)),
    ]
    run()
    for handle in handles:
        handle.remove()
    return tuple(full)


def _alone(cache: str, *, interval: int = 3, **how: Any) -> Tensor:
    """Return the image of a generation on a fresh U-Net by one of the two packages."""
    pipe = _pipe()
    with ExitStack() as stack:
        _theirs(pipe, interval) if cache == "theirs" else stack.enter_context(cached(pipe, interval=interval))
        return _image(pipe, **how)


@pytest.mark.parametrize(
    ("scheduler", "interval", "theirs"),
    [
        ("plms", 2, (0, 4, 6)),
        ("pndm", 2, (0, 14)),
        ("pndm", 3, (0, 3, 4, 9, 10, 15)),
        ("heun", 2, (0,)),
        ("heun", 3, (0, 3, 4, 9, 10)),
    ],
)
def test_where_timesteps_repeat_theirs_follows_another_plan(
    scheduler: str, interval: int, theirs: tuple[int, ...]
) -> None:
    """The older package looks up timesteps by value, so it takes every second call of Heun for the call before."""
    pipe = _pipe(scheduler=scheduler)
    pipe.scheduler.set_timesteps(NUM_STEPS)
    num_calls = len(pipe.scheduler.timesteps)
    with cached(pipe, interval=interval):
        ours = _full_steps(pipe, lambda: _image(pipe))
    assert ours == uniform(num_calls, interval).full_steps
    _theirs(pipe, interval)
    assert _full_steps(pipe, lambda: _image(pipe)) == theirs != ours


def test_with_another_strength_theirs_begins_with_the_features_of_the_last_image() -> None:
    """The older package keeps the first generation's start, so that step 0 of the second generation is shallow."""
    pipe = _pipe()
    _theirs(pipe)
    assert _full_steps(pipe, lambda: _image(pipe, 9, begin=2)) == (0, 3, 6)
    assert _full_steps(pipe, lambda: _image(pipe, 9, begin=4)) == (1, 4)
    assert not torch.equal(_image(pipe, 9, seed=1, begin=4), _alone("theirs", num_steps=9, seed=1, begin=4))
    pipe = _pipe()
    with cached(pipe, interval=3):
        assert _full_steps(pipe, lambda: _image(pipe, 9, begin=2)) == (0, 3, 6)
        assert _full_steps(pipe, lambda: _image(pipe, 9, begin=4)) == (0, 3)
        assert torch.equal(_image(pipe, 9, seed=1, begin=4), _alone("ours", num_steps=9, seed=1, begin=4))


def test_enabled_twice_theirs_calls_itself_without_end_and_cannot_be_disabled() -> None:
    pipe = _pipe()
    helper = _theirs(pipe)
    helper.enable()
    with pytest.raises(RecursionError):
        _image(pipe)
    helper.disable()
    with pytest.raises(KeyError):
        _image(pipe)
    pipe = _pipe()
    with cached(pipe, interval=3), cached(pipe, interval=3):
        assert torch.equal(_image(pipe), _alone("ours"))


def test_two_of_theirs_on_one_unet_are_full_where_both_are() -> None:
    pipe = _pipe()
    for interval in (3, 2):
        _theirs(pipe, interval)
    assert _full_steps(pipe, lambda: _image(pipe)) == (0, 6)
    pipe = _pipe()
    with cached(pipe, interval=3), cached(pipe, interval=2):  # the innermost counts
        assert _full_steps(pipe, lambda: _image(pipe)) == (0, 2, 4, 6)


@pytest.mark.parametrize("cache", ["theirs", "ours"])
def test_two_threads_mix_their_features_in_theirs(cache: str) -> None:
    """The threads take turns step by step on one pipeline whose timesteps are set."""
    pipe = _pipe()
    pipe.scheduler.set_timesteps(NUM_STEPS)
    images = [inputs("ddpm", seed=seed)[0][0] for seed in (0, 1)]

    def step(i: int, t: Tensor) -> None:
        images[i] = pipe.scheduler.step(pipe.unet(images[i], t).sample, t, images[i]).prev_sample

    with ExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in images]
        _theirs(pipe) if cache == "theirs" else stack.enter_context(cached(pipe, interval=3))
        for t in pipe.scheduler.timesteps:
            for i, thread in enumerate(threads):
                thread.submit(step, i, t).result(60)
    is_right = [torch.equal(image, _alone(cache, seed=seed)) for seed, image in enumerate(images)]
    assert is_right == [cache == "ours", True]


def test_theirs_cannot_be_pickled_while_enabled() -> None:
    pipe = _pipe()
    _theirs(pipe)
    with pytest.raises((AttributeError, pickle.PicklingError), match="local object"):
        pickle.dumps(pipe.unet)
    pipe = _pipe()
    with cached(pipe, interval=3):
        twin = pickle.loads(pickle.dumps(pipe.unet))
    assert torch.equal(twin(*inputs("ddpm")[0]).sample, unet("ddpm")(*inputs("ddpm")[0]).sample)


def test_deepcopy_of_theirs_runs_the_modules_of_the_original() -> None:
    def outputs_of_an_emptied_copy(model: nn.Module, t: Tensor) -> Tensor:
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        return twin(inputs("ddpm")[0][0], t).sample

    pipe = _pipe()
    pipe.scheduler.set_timesteps(NUM_STEPS)
    t = pipe.scheduler.timesteps[0]
    _theirs(pipe)
    assert torch.equal(outputs_of_an_emptied_copy(pipe.unet, t), unet("ddpm")(inputs("ddpm")[0][0], t).sample)
    pipe = _pipe()
    with cached(pipe, interval=3):
        assert not outputs_of_an_emptied_copy(pipe.unet, t).any()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda model, sample, t: model(sample, timestep=t), IndexError),
        (lambda model, sample, t: model(sample=sample, timestep=t), IndexError),
        (lambda model, sample, t: model(sample, int(t)), AttributeError),
        (lambda model, sample, t: model(sample, t.expand(2)), RuntimeError),
    ],
    ids=["keyword", "all keywords", "int", "one a sample"],
)
def test_theirs_takes_a_timestep_in_one_form(call: Callable[..., Any], error: type[Exception]) -> None:
    pipe, (sample, _) = _pipe(), inputs("ddpm")[0]
    pipe.scheduler.set_timesteps(NUM_STEPS)
    _theirs(pipe)
    with pytest.raises(error):
        call(pipe.unet, sample, pipe.scheduler.timesteps[0])
    pipe.unet = unet("ddpm")
    with cached(pipe, interval=3) as cache:
        for t in pipe.scheduler.timesteps:
            call(pipe.unet, sample, t)
    assert cache.generations[0].full_steps == (0, 3, 6)


def test_another_pipeline_on_the_unet_is_looked_up_in_the_schedule_of_the_first() -> None:
    """The older package gives the second pipeline steps of the first, or raises if a timestep does not occur there."""
    pipe, expected = _pipe(), _alone("ours", num_steps=3)
    other = SimpleNamespace(unet=pipe.unet, scheduler=DDIMScheduler())
    _theirs(pipe)
    _image(pipe, 9)
    assert _full_steps(other, lambda: _image(other, 3)) == ()  # 666, 333 and 0 are steps 2, 5 and 8 of nine
    with pytest.raises(ValueError, match="is not in list"):
        _image(other, 5)
    pipe.unet = other.unet = unet("ddpm")
    with cached(pipe, interval=3):
        _image(pipe, 9)
        assert torch.equal(_image(other, 3), expected)


def test_theirs_takes_no_other_batch_within_a_generation() -> None:
    """This happens when guidance turns off midway."""

    def run(pipe: Any) -> None:
        sample = inputs("ddpm")[0][0]
        pipe.scheduler.set_timesteps(NUM_STEPS)
        for i, t in enumerate(pipe.scheduler.timesteps):
            pipe.unet(sample if i < 2 else sample[:1], t)

    pipe = _pipe()
    _theirs(pipe)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        run(pipe)
    pipe = _pipe()
    with cached(pipe, interval=3):
        assert _full_steps(pipe, lambda: run(pipe)) == (0, 2, 3, 6)


def test_calls_apart_share_one_feature_in_theirs() -> None:
    """The calls are conditional and unconditional; in the older package each takes the feature of the other."""
    name = "uneven-layers"
    (sample, _, context), _ = inputs(name)
    contexts = (context, -context)

    def images(caches: str, which: tuple[int, ...]) -> list[Tensor]:
        pipe = _pipe(name)
        found = [sample, sample]
        pipe.scheduler.set_timesteps(5)
        with ExitStack() as stack:
            _theirs(pipe) if caches == "theirs" else stack.enter_context(cached(pipe, interval=3))
            for t in pipe.scheduler.timesteps:
                for i in which:
                    noise = pipe.unet(found[i], t, contexts[i]).sample
                    found[i] = pipe.scheduler.step(noise, t, found[i]).prev_sample
        return found

    for cache in ("theirs", "ours"):
        together, alone = images(cache, (0, 1)), [images(cache, (i,))[i] for i in (0, 1)]
        assert [torch.equal(a, b) for a, b in zip(together, alone, strict=True)] == [cache == "ours", True]


SMALLEST = {"block_out_channels": (8,), **blocks("DownBlock2D"), "layers_per_block": 1, "add_attention": False}


def test_compiled_theirs_makes_a_graph_for_every_step_and_ours_two() -> None:
    """The step's number is a constant in the older package's graphs; torch runs eagerly beyond eight graphs."""

    def num_graphs(cache: str) -> int:
        graphs: list[int] = []
        pipe = SimpleNamespace(unet=unet("ddpm", **SMALLEST), scheduler=DDIMScheduler())
        pipe.unet = torch.compile(pipe.unet, backend=lambda graph, _: graphs.append(1) or graph.forward)
        with ExitStack() as stack:
            _theirs(pipe) if cache == "theirs" else stack.enter_context(cached(pipe, interval=3))
            _image(pipe, 3)
        return len(graphs)

    assert (num_graphs("theirs"), num_graphs("ours")) == (3, 2)


def test_theirs_keeps_the_output_of_every_module_and_ours_one_tensor() -> None:
    pipe = _pipe()
    helper = _theirs(pipe)
    _image(pipe)
    outputs = [output for outputs in helper.cached_output.values() for output in _tensors(outputs)]
    memories = {output.untyped_storage()._cdata: output.untyped_storage().nbytes() for output in outputs}
    pipe = _pipe()
    with cached(pipe, interval=3) as cache:
        _image(pipe)
    assert len(memories) > 10
    assert sum(memories.values()) > 5 * cache.generations[0].feature_bytes


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, (tuple, list)):
        return [tensor for inner in value for tensor in _tensors(inner)]
    return [value]


def test_after_an_exception_theirs_stays_enabled() -> None:
    pipe = _pipe()
    _theirs(pipe)
    with pytest.raises(Aborted), aborting(pipe.unet, 1):
        _image(pipe)
    assert "forward" in vars(pipe.unet)
    pipe = _pipe()
    with pytest.raises(Aborted), cached(pipe, interval=3), aborting(pipe.unet, 1):
        _image(pipe)
    assert "forward" not in vars(pipe.unet)


def test_unet_without_mid_block_is_left_half_enabled_by_theirs() -> None:
    pipe = _pipe("no-mid")
    with pytest.raises(AttributeError):
        _theirs(pipe)
    assert "forward" in vars(pipe.unet)
    pipe = _pipe("no-mid")
    args, kwargs = inputs("no-mid")
    expected = pipe.unet(*args, **kwargs).sample
    with cached(pipe, interval=3):
        assert torch.equal(pipe.unet(*args, **kwargs).sample, expected)


def test_every_row_of_the_document_is_a_test() -> None:
    document = Path(__file__).parents[2] / "docs" / "older_package.md"
    named = set(re.findall(r"`(test_\w+)`", document.read_text()))
    assert named
    assert [name for name in named if name not in globals() and not hasattr(test_upstream, name)] == []

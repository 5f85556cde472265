"""The two steps, compiled.

The oracles are the eager steps, bit for bit under the eager backend, and dynamo's own number of graphs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from peft import LoraConfig
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from deepcache import DeepCacheError, cached
from deepcache.unets.diffusers import views
from tests import problems
from tests.components import unet_of_images
from tests.pipelines import workload
from tests.problems import inputs, latents, pipeline
from tests.topologies import blocks

NAMES = ("ddpm-attention", "no-mid", "sdxl")  # UNet2DModel, Stable Diffusion without and with added conditions
ONE_LEVEL = {"block_out_channels": (8,)}
SMALLER = {  # fewer modules to trace, and two branches still
    "ddpm-attention": {**ONE_LEVEL, **blocks("AttnDownBlock2D")},
    "no-mid": {**ONE_LEVEL, **blocks("CrossAttnDownBlock2D")},
    "sdxl": {
        **blocks("DownBlock2D", "CrossAttnDownBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "transformer_layers_per_block": 1,
    },
}
INTERVAL, NUM_STEPS = 3, 7


def unet(name: str) -> nn.Module:
    return problems.unet(name, **SMALLER.get(name, {}))


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _generate(model: nn.Module, name: str, *, batch: int = 2, as_number: bool = False) -> Tensor:
    """Run seven steps of DDIM on a U-Net or on a wrapper of it."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(NUM_STEPS)
    (sample, _, *rest), kwargs = inputs(name, batch=batch)
    with torch.no_grad():
        for t in scheduler.timesteps:
            noise = model(sample, int(t) if as_number else t, *rest, **kwargs).sample
            sample = scheduler.step(noise, t, sample).prev_sample
    return sample


@cache
def _eager(name: str, order: int, batch: int = 2) -> Tensor:
    with cached(model := unet(name), interval=INTERVAL, order=order):
        return _generate(model, name, batch=batch)


@pytest.mark.parametrize("name", NAMES)
def test_two_graphs_serve_every_generation_of_a_shape(name: str) -> None:
    """`fullgraph` raises where a step needs two graphs."""
    counter, model = CompileCounter(), unet(name)
    with cached(model, interval=INTERVAL, order=2, compile={"backend": counter, "fullgraph": True}) as cache:
        for _ in range(2):
            assert torch.equal(_generate(model, name), _eager(name, 2))
            assert counter.frame_count == 2
    assert {generation.full_steps for generation in cache.generations} == {(0, 3, 6)}


def test_another_shape_gets_two_graphs_beside_those_of_the_first() -> None:
    name, counter, model = "ddpm-attention", CompileCounter(), unet("ddpm-attention")
    with cached(model, interval=INTERVAL, order=0, compile={"backend": counter, "fullgraph": True}):
        for batch, num_graphs in ((2, 2), (3, 4), (2, 4)):
            assert torch.equal(_generate(model, name, batch=batch), _eager(name, 0, batch=batch))
            assert counter.frame_count == num_graphs


def test_timesteps_that_are_numbers_make_no_graph_of_their_own() -> None:
    counter, model = CompileCounter(), unet("ddpm-attention")
    how = {"backend": counter, "fullgraph": True}
    with cached(model, interval=INTERVAL, order=0, num_steps=NUM_STEPS, compile=how):
        for _ in range(2):
            assert torch.equal(_generate(model, "ddpm-attention", as_number=True), _eager("ddpm-attention", 0))
    assert counter.frame_count == 2


@pytest.mark.parametrize("timestep", [701, 701.75])
@pytest.mark.parametrize("name", ["ddpm-attention", "no-mid"])
def test_number_becomes_the_tensor_that_forward_would_make(name: str, timestep: float) -> None:
    model, (args, kwargs) = unet(name), inputs(name, timestep=timestep)
    expected = model(*args, **kwargs).sample
    with cached(model, interval=2, num_steps=2, compile={"backend": "eager"}):
        assert torch.equal(model(*args, **kwargs).sample, expected)


def _by_wrapper(model: nn.Module, backend: Any) -> Callable[..., Any]:
    return torch.compile(model, backend=backend, fullgraph=True)


def _in_place(model: nn.Module, backend: Any) -> Callable[..., Any]:
    model.compile(backend=backend, fullgraph=True)
    return model


def test_compiled_unet_is_cached_in_the_way_it_was_compiled() -> None:
    name, counter, model = "no-mid", CompileCounter(), unet("no-mid")
    wrapper = _by_wrapper(model, counter)
    uncached = _generate(wrapper, name)
    assert counter.frame_count == 1
    with cached(wrapper, interval=INTERVAL, order=1) as cache:
        for _ in range(2):
            assert torch.equal(_generate(wrapper, name), _eager(name, 1))
    assert counter.frame_count == 3
    assert [generation.full_steps for generation in cache.generations] == [(0, 3, 6)] * 2
    assert torch.equal(_generate(wrapper, name), uncached)
    assert counter.frame_count == 3


def test_unet_compiled_in_place_is_cached_too() -> None:
    name, counter, model = "ddpm-attention", CompileCounter(), unet("ddpm-attention")
    uncached = _generate(_in_place(model, counter), name)
    with cached(model, interval=INTERVAL, order=1, compile={"backend": counter}):
        assert torch.equal(_generate(model, name), _eager(name, 1))
    assert counter.frame_count == 3
    assert torch.equal(_generate(model, name), uncached)
    assert counter.frame_count == 3


def test_pipeline_with_a_compiled_unet() -> None:
    expected, pipe = pipeline(), pipeline()
    expected.unet, pipe.unet = unet("no-mid"), unet("no-mid")  # fewer modules to trace
    with cached(expected, interval=2):
        image = latents(expected)
    pipe.unet = _by_wrapper(pipe.unet, "eager")
    with cached(pipe, interval=2):
        assert torch.equal(latents(pipe), image)


def test_traced_backend_equals_eager_within_rounding() -> None:
    """AOTAutograd traces to primitive operations, as every real backend does first."""
    model = unet("ddpm-attention")
    with cached(model, interval=INTERVAL, order=1, compile={"backend": "aot_eager", "fullgraph": True}):
        torch.testing.assert_close(_generate(model, "ddpm-attention"), _eager("ddpm-attention", 1))


def _generate_at_two_branches_in_two_sizes() -> int:
    """Return the number of graphs, where torch keeps three graphs for one function's code and raises at the fourth."""
    counter, model = CompileCounter(), unet("ddpm-attention")
    with torch._dynamo.config.patch(recompile_limit=3):
        for branch in range(2):
            with cached(model, interval=2, branch=branch, compile={"backend": counter, "fullgraph": True}) as cache:
                for batch in (2, 3):
                    cache.reset()
                    _generate(model, "ddpm-attention", batch=batch)
    return counter.frame_count


def test_any_number_of_branches_and_shapes_stays_compiled() -> None:
    assert _generate_at_two_branches_in_two_sizes() == 2 * 2 * 2


def test_steps_that_share_their_code_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test of the test above: with shared code, torch reaches its limit of graphs."""
    monkeypatch.setattr("deepcache.cache.steps._with_own_code", lambda run: run)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        _generate_at_two_branches_in_two_sizes()


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="Inductor needs a C++ compiler")
def test_the_default_compiler_equals_eager_within_a_thousandth() -> None:
    """The kernels of Inductor run, in a second generation too."""
    model, expected = unet("ddpm"), _eager("ddpm", 1)
    with cached(model, interval=INTERVAL, order=1, compile="default"):
        found = [_generate(model, "ddpm") for _ in range(2)]
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def _free(model: Any) -> None:
    model.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)


def _adapt(model: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False))


@pytest.mark.parametrize("change", [_free, _adapt], ids=["FreeU", "LoRA"])
def test_change_of_the_unet_within_a_compiled_block_is_seen(change: Callable[[Any], None]) -> None:
    """Law 9; FreeU changes the block that the branch cuts, LoRA layers in it. The oracle is an eager block."""
    name = "no-mid"
    changed = unet(name)
    change(changed)
    with cached(changed, interval=INTERVAL):
        expected = _generate(changed, name)
    model = unet(name)
    with cached(model, interval=INTERVAL, compile={"backend": "eager"}) as cache:
        before = _generate(model, name)
        change(model)
        found = _generate(model, name)
    assert not torch.equal(before, expected)
    assert torch.equal(found, expected)
    assert [generation.full_steps for generation in cache.generations] == [(0, 3, 6)] * 2


def test_views_that_are_made_once_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test of the test above: a view that is kept has the numbers of FreeU from before the change."""
    for name in ("full_view", "shallow_view"):
        monkeypatch.setattr(f"deepcache.unets.diffusers.forward.{name}", cache(getattr(views, name)))
    with pytest.raises(AssertionError):
        test_change_of_the_unet_within_a_compiled_block_is_seen(_free)


def test_ip_adapter_of_a_compiled_block_is_as_in_an_eager_one() -> None:
    """The images of an IP-Adapter are an input of the U-Net's own projection."""
    made = workload("IP-Adapter")
    made.pipe.unet = unet_of_images(**SMALLER["no-mid"])
    with cached(made.pipe, interval=INTERVAL):
        expected = made.run()
    with cached(made.pipe, interval=INTERVAL, compile={"backend": "eager"}):
        assert torch.equal(made.run(), expected)


@pytest.mark.parametrize("how", [{"x": 1}, {"mode": "fast"}, {"mode": "default", "options": {"max_autotune": True}}])
def test_arguments_that_the_compiler_does_not_take_are_refused(how: Any) -> None:
    with (
        pytest.raises(DeepCacheError, match=r"torch\.compile") as caught,
        cached(unet("ddpm"), interval=2, compile=how),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_graphs_of_our_own_are_refused_with_the_name_of_torchs() -> None:
    with pytest.raises(DeepCacheError, match="reduce-overhead"), cached(unet("ddpm"), interval=2, cuda_graphs=True):
        pass


@pytest.mark.parametrize("how", ["fast", True, 3])
def test_unknown_way_to_compile_is_refused(how: Any) -> None:
    refused = pytest.raises(DeepCacheError, match="expected compile to be one of default, reduce-overhead")
    with refused, cached(unet("ddpm"), interval=2, compile=how):
        pass

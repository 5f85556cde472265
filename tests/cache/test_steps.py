"""The two steps, compiled.

The oracles are the eager steps, bit for bit under the eager backend, and dynamo's own number of graphs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
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

# Each module takes its time to trace, so there are one level and one layer, which make two branches still.
SMALL = {"block_out_channels": (8,), "layers_per_block": 1, "mid_block_type": None}
ONE_ATTENTION = {**SMALL, "down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("UpBlock2D",)}
SMALLER = {
    "ddpm-attention": {**SMALL, **blocks("AttnDownBlock2D")},
    "ddpm-no-mid": {**SMALL, **blocks("DownBlock2D")},
    "no-mid": {**SMALL, **blocks("DownBlock2D")},
    "sdxl": {**ONE_ATTENTION, "transformer_layers_per_block": 1},
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
def _eager(name: str, order: int, batch: int = 2, branch: int = 0) -> Tensor:
    with cached(model := unet(name), interval=INTERVAL, branch=branch, order=order):
        return _generate(model, name, batch=batch)


@pytest.mark.parametrize(("name", "branch"), [("ddpm-attention", 0), ("sdxl", 1)])
def test_two_graphs_serve_every_generation_of_a_shape(name: str, branch: int) -> None:
    """`fullgraph` raises where a step needs two graphs. Timesteps that are numbers make no graph of their own."""
    counter, model = CompileCounter(), unet(name)
    how = {"order": 2, "num_steps": NUM_STEPS, "compile": {"backend": counter, "fullgraph": True}}
    with cached(model, interval=INTERVAL, branch=branch, **how) as cache:
        for as_number in (False, True, False):
            assert torch.equal(_generate(model, name, as_number=as_number), _eager(name, 2, branch=branch))
            assert counter.frame_count == 2
    assert [generation.full_steps for generation in cache.generations] == [(0, 3, 6)] * 3


@pytest.mark.parametrize("timestep", [701, 701.75])
@pytest.mark.parametrize("name", ["ddpm-attention", "no-mid"])
def test_number_becomes_the_tensor_that_forward_would_make(name: str, timestep: float) -> None:
    """The tensor is made before the graph runs, so nothing needs to be traced here."""
    model, (args, kwargs) = unet(name), inputs(name, timestep=timestep)
    expected = model(*args, **kwargs).sample
    how = {"num_steps": 2, "compile": {"backend": "eager"}}
    with torch.compiler.set_stance("force_eager"), cached(model, interval=2, **how):
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
        for batch, num_graphs in ((2, 3), (3, 5), (2, 5)):  # another shape has graphs beside those of the first
            assert torch.equal(_generate(wrapper, name, batch=batch), _eager(name, 1, batch))
            assert counter.frame_count == num_graphs
    assert [generation.full_steps for generation in cache.generations] == [(0, 3, 6)] * 3
    assert torch.equal(_generate(wrapper, name), uncached)
    assert counter.frame_count == 5


def test_unet_compiled_in_place_is_cached_too() -> None:
    name, counter, model = "ddpm-no-mid", CompileCounter(), unet("ddpm-no-mid")
    uncached = _generate(_in_place(model, counter), name)
    with cached(model, interval=INTERVAL, order=1, compile={"backend": counter}):
        assert torch.equal(_generate(model, name), _eager(name, 1))
    assert counter.frame_count == 3
    assert torch.equal(_generate(model, name), uncached)
    assert counter.frame_count == 3


def test_pipeline_with_a_compiled_unet() -> None:
    """The pipeline reads its U-Net's attributes through torch.compile's wrapper, so nothing has to be traced here."""
    pipe = pipeline()
    with cached(pipe, interval=2):
        image = latents(pipe)
    pipe.unet = _by_wrapper(pipe.unet, "eager")
    with torch.compiler.set_stance("force_eager"), cached(pipe, interval=2):
        assert torch.equal(latents(pipe), image)


def test_traced_backend_equals_eager_within_rounding() -> None:
    """AOTAutograd traces to primitive operations, as every real backend does first."""
    name, model = "ddpm-no-mid", unet("ddpm-no-mid")
    with cached(model, interval=INTERVAL, order=1, compile={"backend": "aot_eager", "fullgraph": True}):
        torch.testing.assert_close(_generate(model, name), _eager(name, 1))


def _generate_at_two_branches() -> int:
    """Return the number of graphs, where torch keeps one graph for one function's code and raises at the second."""
    name, counter, model = "ddpm-no-mid", CompileCounter(), unet("ddpm-no-mid")
    with torch._dynamo.config.patch(recompile_limit=1):
        for branch in range(2):
            how = {"branch": branch, "order": 0, "compile": {"backend": counter, "fullgraph": True}}
            with cached(model, interval=INTERVAL, **how):
                assert torch.equal(_generate(model, name), _eager(name, 0, branch=branch))
    return counter.frame_count


def test_any_number_of_branches_stays_compiled() -> None:
    assert _generate_at_two_branches() == 2 * 2


def test_steps_that_share_their_code_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test of the test above: with shared code, torch reaches its limit of graphs."""
    monkeypatch.setattr("deepcache.cache.steps._with_own_code", lambda run: run)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        _generate_at_two_branches()


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="Inductor needs a C++ compiler")
def test_the_default_compiler_equals_eager_within_a_thousandth() -> None:
    """The kernels of Inductor run, in a second generation too."""
    name, model = "ddpm-attention", unet("ddpm-attention")
    expected = _eager(name, 1)
    with cached(model, interval=INTERVAL, order=1, compile="default"):
        found = [_generate(model, name) for _ in range(2)]
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def _free(model: Any) -> None:
    model.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)


def _adapt(model: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=2, target_modules=["time_emb_proj", "conv1"], init_lora_weights=False))


def test_change_of_the_unet_within_a_compiled_block_is_seen() -> None:
    """Law 9; FreeU changes the block that the branch cuts, LoRA layers in it.

    The oracle is an eager block around a U-Net that was changed before it.
    """
    name = "no-mid"

    def expected(*changes: Callable[[Any], None]) -> Tensor:
        model = unet(name)
        for change in changes:
            change(model)
        with cached(model, interval=INTERVAL):
            return _generate(model, name)

    bare, free, adapted = expected(), expected(_free), expected(_free, _adapt)
    assert not torch.equal(bare, free)
    assert not torch.equal(free, adapted)
    with cached(model := unet(name), interval=INTERVAL, compile={"backend": "eager"}) as cache:
        assert torch.equal(_generate(model, name), bare)
        _free(model)
        assert torch.equal(_generate(model, name), free)
        _adapt(model)
        assert torch.equal(_generate(model, name), adapted)
    assert [generation.full_steps for generation in cache.generations] == [(0, 3, 6)] * 3


def test_lora_is_fused_weighed_and_taken_away_within_a_block_as_before_it() -> None:
    """Law 9; the oracle is an eager block around a U-Net that was changed in the same way before it."""
    name, config = "no-mid", LoraConfig(r=2, target_modules=["time_emb_proj", "conv1"], init_lora_weights=False)
    changes: dict[str, Callable[[Any], Any]] = {
        "fused": lambda model: model.fuse_lora(lora_scale=0.5),
        "unfused": lambda model: model.unfuse_lora(),
        "weighed": lambda model: model.set_adapters(["default"], [0.25]),
        "deleted": lambda model: model.delete_adapters("default"),
    }

    def adapted() -> Any:
        model = unet(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.add_adapter(config)
        return model

    eager, compiled, oracle, images = adapted(), adapted(), adapted(), []
    how = {"interval": INTERVAL}
    with cached(eager, **how), cached(compiled, **how, compile={"backend": "eager"}):
        for change in changes.values():
            for model in (eager, compiled, oracle):
                change(model)
            with cached(oracle, **how):
                images.append(_generate(oracle, name))
            assert torch.equal(_generate(eager, name), images[-1])
            assert torch.equal(_generate(compiled, name), images[-1])
    assert not any(torch.equal(*pair) for pair in pairwise(images))  # each change is seen in the image


def test_views_that_are_made_once_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test of the test above: a view that is kept has the numbers of FreeU from before the change, traced or not."""
    for name in ("full_view", "shallow_view"):
        monkeypatch.setattr(f"deepcache.unets.diffusers.forward.{name}", cache(getattr(views, name)))
    with torch.compiler.set_stance("force_eager"), pytest.raises(AssertionError):
        test_change_of_the_unet_within_a_compiled_block_is_seen()


def test_ip_adapter_of_a_compiled_block_is_as_in_an_eager_one() -> None:
    """The images of an IP-Adapter are an input of the U-Net's own projection."""
    made = workload("IP-Adapter")
    made.pipe.unet = unet_of_images(**ONE_ATTENTION)
    with cached(made.pipe, interval=INTERVAL, branch=1):
        expected = made.run()
    with cached(made.pipe, interval=INTERVAL, branch=1, compile={"backend": "eager"}):
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

"""Published models with random weights have their own shapes, depend on the seed alone, and give no NaN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepcache import DeepCacheError, cached, models
from deepcache.models.architectures import architecture, random_pipeline, skeleton
from deepcache.models.registry import PUBLISHED

KINDS = {"ldm": "ClassConditionalPipeline", "sdx": "StableDiffusionXLPipeline", "ddp": "DDPMPipeline"}


def networks(pipe) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_real_model_is_a_ready_pipeline_of_its_own_shapes(name):
    pipe = models.load(name, weights="random", device="meta", dtype=torch.float16)
    assert type(pipe).__name__ == KINDS.get(name[:3], "StableDiffusionPipeline")
    shapes = {key: value.shape for key, value in architecture(name).meta().state_dict().items()}
    assert {key: value.shape for key, value in pipe.unet.state_dict().items()} == shapes
    assert networks(pipe).keys() == vars(skeleton(name)[0]).keys()
    for network in networks(pipe).values():
        assert not network.training
        assert {weight.dtype for weight in network.parameters()} == {torch.float16}
        # what is no weight must be filled as well: CLIP's positions are
        assert {key.split(".")[-1] for key, _ in network.named_buffers()} <= {"position_ids"}


@pytest.fixture(scope="module")
def ddpm():
    return models.load("ddpm-cifar10", weights="random")


def test_the_weights_depend_on_the_seed_alone(ddpm):
    state = ddpm.unet.state_dict()
    same, other = (random_pipeline("ddpm-cifar10", seed=seed).unet.state_dict() for seed in (0, 1))
    assert all(torch.equal(value, same[name]) for name, value in state.items())
    assert any(not torch.equal(value, other[name]) for name, value in state.items())
    half = random_pipeline("ddpm-cifar10", dtype=torch.bfloat16).unet.state_dict()
    torch.testing.assert_close(half["conv_in.weight"].float(), state["conv_in.weight"], rtol=0.02, atol=0)


def test_the_weights_are_scaled_by_their_fan_in(ddpm):
    weight = ddpm.unet.mid_block.resnets[0].conv1.weight  # (256, 256, 3, 3)
    assert float(weight.std() * (256 * 9) ** 0.5) == pytest.approx(1, abs=0.01)
    assert len(weight.flatten(1).unique(dim=0)) == len(weight)
    norm = ddpm.unet.conv_norm_out
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()


@torch.no_grad()
def test_a_step_is_finite_and_is_cached(ddpm):
    image, unet = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), ddpm.unet
    output = unet(image, 500).sample
    assert output.isfinite().all()
    assert 0.1 < output.std() < 10
    with cached(unet, interval=2, branch=2, num_steps=2):
        full = unet(image, 500).sample
        shallow = unet(image, 499).sample
    assert torch.equal(full, output)
    assert shallow.isfinite().all()
    assert not torch.equal(shallow, unet(image, 499).sample)


def test_a_prompted_model_runs_through_and_is_cached():
    pipe = models.load("bk-sdm-tiny", weights="random")
    pipe.set_progress_bar_config(disable=True)
    tokens = pipe.tokenizer("a red sneaker", padding="max_length").input_ids
    assert len(tokens) == 77
    assert max(tokens) < pipe.text_encoder.config.vocab_size
    arguments = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}
    with cached(pipe, interval=3) as cache:
        images = pipe("a red sneaker", generator=torch.Generator().manual_seed(0), **arguments).images
    assert images.isfinite().all()
    assert cache.generations[0].full_steps == (0,)


@pytest.mark.parametrize("name", ["mini-ldm", "someone/else", "sd-9"])
def test_other_models_have_no_random_weights(name):
    with pytest.raises(DeepCacheError, match=r"expected a real model for random weights, out of ldm-4-g, .*; got"):
        models.load(name, weights="random")

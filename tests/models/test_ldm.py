"""A pipeline that is loaded from CompVis' checkpoint computes what a plain evaluation of the same weights computes.

The oracle is `compvis.py`, which shares no code with the loader or diffusers. Tolerances are those of float32.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deepcache import DeepCacheError, cached
from deepcache.models import load_ldm
from deepcache.models.architectures import ARCHITECTURES
from deepcache.models.ldm import ldm_pipeline
from deepcache.models.ldm_config import CIN256_V2, LdmConfig
from tests import compvis

NOTHING = 10  # the last of the tiny configuration's 11 classes
VARIANTS: dict[str, dict[str, Any]] = {
    "cin256-v2's layout": {},
    "heads of 16 channels, attention at all rates and on pixels": {
        "unet": {"num_heads": -1, "num_head_channels": 16, "attention_resolutions": [1, 2, 4]},
        "autoencoder": {"attn_resolutions": [16], "num_res_blocks": 2},
    },
    "attention in the middle alone": {"unet": {"attention_resolutions": []}, "autoencoder": {"attn_resolutions": []}},
    "two heads, two transformer blocks, one resnet a level, three levels of pixels": {
        "unet": {"num_heads": 2, "transformer_depth": 2, "num_res_blocks": 1},
        "autoencoder": {"ch_mult": [1, 1, 2], "attn_resolutions": [4], "resolution": 16},
    },
}
TOLERANCE = 1e-4  # of float32 through some forty layers; the smallest mistake below makes ten times as much
# A weight of each kind, and the comparison that must notice it
KINDS = {
    "time_embed.0.weight": "unet",
    "input_blocks.0.0.weight": "unet",
    "input_blocks.4.0.emb_layers.1.weight": "unet",
    "input_blocks.3.0.op.weight": "unet",
    "input_blocks.4.0.skip_connection.weight": "unet",
    "input_blocks.4.1.transformer_blocks.0.attn1.to_k.weight": "unet",
    "input_blocks.4.1.transformer_blocks.0.attn2.to_v.weight": "unet",
    "input_blocks.4.1.proj_out.weight": "unet",
    "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": "unet",
    "output_blocks.2.2.conv.weight": "unet",
    "diffusion_model.out.0.bias": "unet",
    "encoder.down.0.downsample.conv.weight": "encoder",
    "encoder.down.1.attn.0.q.weight": "encoder",
    "encoder.mid.attn_1.proj_out.weight": "encoder",
    "first_stage_model.quant_conv.weight": "encoder",
    "quantize.embedding.weight": "decoder",
    "post_quant_conv.weight": "decoder",
    "decoder.mid.attn_1.v.weight": "decoder",
    "decoder.up.1.attn.1.norm.weight": "decoder",
    "decoder.up.0.block.0.nin_shortcut.weight": "decoder",
}


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LATENTS, TIMESTEPS, CONTEXT = random(2, 4, 8, 8), torch.tensor([3, 700]), random(2, 1, 24, seed=2)
IMAGES = random(2, 3, 16, 16)


@torch.no_grad()
def plain(state: dict[str, Tensor], found: compvis.Config) -> dict[str, Tensor]:
    """The outputs of the plain evaluation, which have a standard deviation of some 0.2."""
    codes = compvis.encode(state, found, IMAGES)
    unet = compvis.unet(state, found, LATENTS, TIMESTEPS, CONTEXT)
    outputs = {"unet": unet, "encoder": codes, "decoder": compvis.decode(state, found, codes)}
    assert all(output.std() > 0.05 for output in outputs.values())
    return outputs


@torch.no_grad()
def differences(pipe: Any, theirs: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference of each output between the pipeline and the plain evaluation."""
    ours = {
        "unet": pipe.unet(LATENTS, TIMESTEPS, CONTEXT).sample,
        "encoder": pipe.vqvae.encode(IMAGES).latents,
        "decoder": pipe.decode_latents(theirs["encoder"]),
    }
    return {part: float((output - theirs[part]).abs().max()) for part, output in ours.items()}


def loaded(found: compvis.Config, state: dict[str, Tensor]) -> Any:
    return ldm_pipeline(state, "checkpoint", LdmConfig("configuration", found["model"]["params"]))


@pytest.fixture(scope="module")
def found() -> compvis.Config:
    return compvis.config()


@pytest.fixture(scope="module")
def state(found) -> dict[str, Tensor]:
    return compvis.checkpoint(found)


@pytest.fixture(scope="module")
def expected(found, state) -> dict[str, Tensor]:
    return plain(state, found)


@pytest.fixture(scope="module")
def pipe(found, state, tmp_path_factory) -> Any:
    pipe = load_ldm(*compvis.written(tmp_path_factory.mktemp("ldm"), found, state))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_unet_encoder_and_decoder_agree_with_a_plain_evaluation(tmp_path, variant):
    found = compvis.config(**variant)
    state = compvis.checkpoint(found)
    pipe = load_ldm(*compvis.written(tmp_path, found, state))
    assert max(differences(pipe, plain(state, found)).values()) < TOLERANCE


@pytest.mark.parametrize("name", KINDS)
def test_the_comparison_notices_every_kind_of_weight(found, state, expected, name):
    """Test of the test."""
    (place,) = [key for key in state if key.endswith(name) and "model_ema" not in key]
    other = {**state, place: state[place] + 0.5 * random(*state[place].shape)}
    found_in = differences(loaded(found, other), expected)
    assert {part for part, difference in found_in.items() if difference > 1e-3} == {KINDS[name]}


def test_the_comparison_notices_another_number_of_heads(state, expected):
    """Test of the test: weights do not tell the number of heads; cin256-v2 has one."""
    assert differences(loaded(compvis.config({"num_heads": 2}), state), expected)["unet"] > 1e-3
    assert set(CIN256_V2.get("unet_config.params")).isdisjoint({"num_head_channels"})
    assert ARCHITECTURES["ldm-4-g"].config["attention_head_dim"] == (1, 1, 1, 1)


def test_guided_samples_are_those_of_compvis_sampler(pipe, found, state):
    labels, latents = [3, 7], random(2, 4, 8, 8)
    for num_steps, scale in ((4, 1.5), (2, 1.0), (1, 3.0)):
        ours = pipe(labels, num_steps, scale, latents=latents, output_type="latent").images
        theirs = compvis.sampled(state, found, torch.tensor(labels), latents, num_steps, scale, NOTHING)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    other = compvis.sampled(state, found, torch.tensor(labels), latents, num_steps, scale, unconditional=0)
    assert (other - theirs).abs().max() > 1e-3  # test of the test


def test_the_last_class_stands_for_none(pipe, state):
    assert pipe.class_embedder.config.num_classes == NOTHING
    assert torch.equal(
        pipe.class_embedder(torch.tensor([NOTHING]))[0, 0], state["cond_stage_model.embedding.weight"][-1]
    )
    with pytest.raises(DeepCacheError, match=r"expected class labels in 0\.\.9"):
        pipe(class_labels=[NOTHING])


def test_attention_is_at_the_configured_rates_alone(pipe):
    at = {name for name, _ in pipe.unet.named_modules() if name.endswith(".attentions")}
    assert at == {"down_blocks.1.attentions", "down_blocks.2.attentions", "mid_block.attentions"} | {
        "up_blocks.0.attentions",
        "up_blocks.1.attentions",
    }


def test_averaged_weights_are_sampled_with_where_the_configuration_says_so(state, expected):
    averaged = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): value + 0.1
        for name, value in state.items()
        if name.startswith("model.diffusion_model.")
    }
    both = {**state, **averaged, "model_ema.decay": torch.tensor(0.999)}
    moved = {name: value + 0.1 * name.startswith("model.diffusion_model.") for name, value in state.items()}
    with_ema, without = compvis.config(use_ema=True), compvis.config(use_ema=False)
    assert differences(loaded(with_ema, both), plain(moved, with_ema))["unet"] < TOLERANCE
    assert differences(loaded(without, both), expected)["unet"] < TOLERANCE
    assert differences(loaded(with_ema, state), expected)["unet"] < TOLERANCE


def test_a_measured_scale_of_the_latents_counts(tmp_path, found, state):
    pipe = load_ldm(*compvis.written(tmp_path, found, {**state, "scale_factor": torch.tensor(0.5)}))
    codes = compvis.encode(state, found, random(2, 3, 16, 16))
    torch.testing.assert_close(
        pipe.decode_latents(0.5 * codes), compvis.decode(state, found, codes), rtol=0, atol=TOLERANCE
    )


def test_what_only_the_training_needs_is_left_out(tmp_path, found, state, pipe):
    more = {"first_stage_model.loss.discriminator.main.0.weight": random(4), "logvar": random(1000)}
    other = load_ldm(*compvis.written(tmp_path, found, {**state, **more}, optimizer_states=[{"lr": 1.0}]))
    assert all(torch.equal(a, b) for a, b in zip(other.unet.parameters(), pipe.unet.parameters(), strict=True))


def test_the_weights_have_the_dtype_that_was_asked_for(tmp_path, found, state):
    half = {name: value.half() if name != "alphas_cumprod" else value for name, value in state.items()}
    pipe = load_ldm(*compvis.written(tmp_path, found, half), dtype=torch.bfloat16)
    parts = (pipe.unet, pipe.vqvae, pipe.class_embedder)
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.bfloat16}


def test_the_loaded_unet_is_cached(pipe):
    def images() -> Tensor:
        return pipe([3, 7], 6, 1.5, latents=random(2, 4, 8, 8), output_type="latent").images

    uncached = images()
    with cached(pipe, interval=1):
        assert torch.equal(images(), uncached)
    with cached(pipe, interval=3, branch=1) as cache:
        assert not torch.equal(images(), uncached)
    assert cache.generations[0].full_steps == (0, 3)


def test_the_built_in_configuration_is_cin256_v2s():
    """On the meta device, all shapes of the full layout fit: 457 M weights."""
    with torch.device("meta"):
        state = compvis.layout({"model": {"params": CIN256_V2.params}}, lambda _, shape: torch.empty(*shape))
    pipe = ldm_pipeline(state, "nowhere")
    parts = (pipe.unet, pipe.vqvae, pipe.class_embedder)
    assert sum(weight.numel() for part in parts for weight in part.parameters()) == sum(
        w.numel() for w in state.values()
    )
    assert state["cond_stage_model.embedding.weight"].shape == (1001, 512)
    assert pipe.vqvae.config.sample_size == 256
    assert pipe.scheduler.config.steps_offset == 1

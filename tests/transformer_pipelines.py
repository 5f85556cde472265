"""Small random pipelines of diffusers with a transformer, by name, and U-Nets of diffusers of other classes.

The pipelines differ in how they pass the timestep, in how they call for guidance, and in their solver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn

from tests.components import noise, random
from tests.pipelines import workload
from tests.problems import TIMESTEPS

DIM, TOKENS = 8, 5
HEADS = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
PATCHES = {"sample_size": 8, "patch_size": 2, "in_channels": 4}


@dataclass(frozen=True)
class Work:
    """A pipeline with the arguments of a call, and the number of calls that its transformer gets in a step."""

    pipe: Any
    conditions: Mapping[str, Any]
    calls: int = 1

    def run(self, num_steps: int = 6, **changes: Any) -> Tensor:
        """Return the latents that the pipeline samples from a seed."""
        generator = torch.Generator().manual_seed(0)
        given = {"output_type": "latent", **self.conditions, **changes}
        (image,) = self.pipe(num_inference_steps=num_steps, generator=generator, return_dict=False, **given)
        return torch.as_tensor(image)


def text(*, masked: bool = False, pooled: bool = False) -> dict[str, Tensor]:
    """Return a prompt and a negative one; `masked` with masks, `pooled` with embeddings of the whole."""
    names = ("prompt_embeds", "negative_prompt_embeds")
    found = {name: noise(1, TOKENS, DIM, seed=seed) for seed, name in enumerate(names)}
    if pooled:
        found |= {f"{name.removesuffix('prompt_embeds')}pooled_prompt_embeds": noise(1, DIM, seed=7) for name in names}
    if masked:
        masks = (name.replace("embeds", "attention_mask") for name in names)
        found |= dict.fromkeys(masks, torch.ones(1, TOKENS, dtype=torch.bool))
    return found


def _pipe(name: str, transformer: Any, scheduler: Any, *absent: str, channels: int = 4) -> Any:
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=4, latent_channels=channels, shift_factor=0.0, scaling_factor=1.0
    )
    networks = {"transformer": random(transformer), "vae": random(vae), "scheduler": scheduler}
    return getattr(diffusers, name)(**networks, **dict.fromkeys(absent))


def _sd3() -> Work:
    """The timestep is a view of the scheduler's; both halves of guidance are in one call."""
    transformer = diffusers.SD3Transformer2DModel(
        **PATCHES, **HEADS, joint_attention_dim=DIM, caption_projection_dim=16, pooled_projection_dim=DIM,
        out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    absent = [f"{kind}{end}" for kind in ("text_encoder", "tokenizer") for end in ("", "_2", "_3")]
    pipe = _pipe("StableDiffusion3Pipeline", transformer, FlowMatchEulerDiscreteScheduler(), *absent)
    return Work(pipe, {**text(pooled=True), "height": 8, "width": 8})


def _flux(*, is_guided: bool = False) -> Work:
    """The timestep is a copy, divided by 1000; guidance is an input, or is made of two calls."""
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=DIM, pooled_projection_dim=DIM, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    absent = [f"{kind}{end}" for kind in ("text_encoder", "tokenizer") for end in ("", "_2")]
    pipe = _pipe("FluxPipeline", transformer, FlowMatchEulerDiscreteScheduler(), *absent, channels=1)
    given = {name: value for name, value in text(pooled=True).items() if is_guided or "negative" not in name}
    scale = {"true_cfg_scale": 4.0} if is_guided else {}
    return Work(pipe, {**given, **scale, "height": 8, "width": 8}, calls=1 + is_guided)


def _pixart() -> Work:
    """The solver is DPM-Solver++, and the transformer predicts a variance that the pipeline drops."""
    transformer = diffusers.PixArtTransformer2DModel(
        **PATCHES,
        **HEADS,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=DIM,
        use_additional_conditions=False,
    )
    pipe = _pipe("PixArtAlphaPipeline", transformer, DPMSolverMultistepScheduler(), "text_encoder", "tokenizer")
    given = {"height": 8, "width": 8, "use_resolution_binning": False, "negative_prompt": None}
    return Work(pipe, {**text(masked=True), **given})


def _lumina() -> Work:
    """The timestep is what is left of the whole; the halves of guidance have a call each."""
    transformer = diffusers.Lumina2Transformer2DModel(
        **PATCHES, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=1, num_kv_heads=1,
        multiple_of=2, axes_dim_rope=[8, 8, 8], axes_lens=[30, 30, 30], cap_feat_dim=DIM,
    )  # fmt: skip
    pipe = _pipe("Lumina2Pipeline", transformer, FlowMatchEulerDiscreteScheduler(), "text_encoder", "tokenizer")
    return Work(pipe, {**text(masked=True), "height": 16, "width": 16}, calls=2)


def _aura() -> Work:
    """The timestep is a view of a copy of its own, divided by 1000."""
    transformer = diffusers.AuraFlowTransformer2DModel(
        **PATCHES, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=DIM, caption_projection_dim=16, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip
    pipe = _pipe("AuraFlowPipeline", transformer, FlowMatchEulerDiscreteScheduler(), "text_encoder", "tokenizer")
    return Work(pipe, {**text(masked=True), "height": 8, "width": 8})


def _cogview() -> Work:
    """The timestep is a view of the scheduler's, and the halves of guidance have a call each."""
    transformer = diffusers.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2, out_channels=4,
        text_embed_dim=DIM, time_embed_dim=8, condition_dim=4,
    )  # fmt: skip
    pipe = _pipe("CogView4Pipeline", transformer, FlowMatchEulerDiscreteScheduler(), "text_encoder", "tokenizer")
    return Work(pipe, {**text(), "height": 16, "width": 16}, calls=2)


def _dit() -> Work:
    """The solver is DDIM, whose scheduler does not count its steps; the pipeline decodes."""
    transformer = diffusers.DiTTransformer2DModel(**PATCHES, **HEADS, out_channels=8, num_embeds_ada_norm=1000)
    pipe = _pipe("DiTPipeline", transformer, DDIMScheduler())
    return Work(pipe, {"class_labels": [1], "output_type": "np"})


_BUILDERS: dict[str, Callable[[], Work]] = {
    "SD3": _sd3,
    "FLUX": _flux,
    "FLUX, two calls": lambda: _flux(is_guided=True),
    "PixArt": _pixart,
    "Lumina2": _lumina,
    "AuraFlow": _aura,
    "CogView4": _cogview,
    "DiT": _dit,
}
NAMES = tuple(_BUILDERS)


def work(name: str) -> Work:
    """Return a pipeline of one's own around weights that all tests share."""
    made = _built(name)
    pipe = copy(made.pipe)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return Work(pipe, made.conditions, made.calls)


@cache
def _built(name: str) -> Work:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = _BUILDERS[name]()
    made.pipe.set_progress_bar_config(disable=True)
    return made


def _k_blocks() -> tuple[Any, Callable[[], Tensor]]:
    """Return a U-Net with Katherine Crowson's blocks, as Stable Diffusion's upscaler has."""
    model = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 32, 64, 64), cross_attention_dim=DIM, attention_head_dim=8,
        down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3), mid_block_type=None, norm_num_groups=None,
        up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"), conv_in_kernel=1, conv_out_kernel=1,
        time_embedding_type="fourier", timestep_post_act="gelu", act_fn="gelu", resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    return _called(model, noise(2, 4, 16, 16), noise(2, TOKENS, DIM))


def _kandinsky3() -> tuple[Any, Callable[[], Tensor]]:
    model = diffusers.Kandinsky3UNet(
        in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=2,
        block_out_channels=(8, 16), cross_attention_dim=4, encoder_hid_dim=DIM,
    )  # fmt: skip
    return _called(model, noise(2, 4, 8, 8), noise(2, TOKENS, DIM), torch.ones(2, TOKENS))


def _audioldm2() -> tuple[Any, Callable[[], Tensor]]:
    model = diffusers.AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16), cross_attention_dim=(None, DIM), attention_head_dim=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return _called(model, noise(2, 4, 8, 8), noise(2, TOKENS, DIM))


def _dance_diffusion() -> tuple[Any, Callable[[], Tensor]]:
    model = diffusers.UNet1DModel(
        block_out_channels=(32, 32, 32), extra_in_channels=64, sample_size=64, use_timestep_embedding=False
    )
    return _called(model, noise(2, 2, 64))


def _stable_cascade() -> tuple[Any, Callable[[], Tensor]]:
    model = diffusers.StableCascadeUNet(
        in_channels=4, out_channels=4, timestep_ratio_embedding_dim=4, conditioning_dim=DIM, block_out_channels=(8, 16),
        num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1),
        clip_text_pooled_in_channels=DIM, clip_seq=2,
    )  # fmt: skip
    random(model)
    sample, pooled, shares = noise(2, 4, 8, 8), noise(2, 1, DIM), TIMESTEPS / 1000
    return model, lambda: torch.stack([model(sample, share.expand(2), pooled)[0] for share in shares])


def _dream_lite() -> tuple[Any, Callable[[], Tensor]]:
    model = diffusers.DreamLiteUNetModel(
        block_out_channels=(8, 16, 16), cross_attention_dim=DIM, attention_head_dim=4, norm_num_groups=4
    )
    return _called(model, noise(2, 4, 8, 8), noise(2, TOKENS, DIM))


def _controlnet_xs() -> tuple[Any, Callable[[], Tensor]]:
    made = workload("ControlNet-XS")
    return made.owner, made.run


def _called(model: nn.Module, sample: Tensor, *conditions: Tensor) -> tuple[Any, Callable[[], Tensor]]:
    random(model)
    return model, lambda: torch.stack([model(sample, t, *conditions)[0] for t in TIMESTEPS])


# U-Nets that are watched: what `cached` takes, and what samples five steps
WATCHED: dict[str, Callable[[], tuple[Any, Callable[[], Tensor]]]] = {
    "K blocks": _k_blocks,
    "Kandinsky 3": _kandinsky3,
    "ControlNet-XS": _controlnet_xs,
    "AudioLDM 2": _audioldm2,
    "Dance Diffusion": _dance_diffusion,
    "Stable Cascade": _stable_cascade,
    "DreamLite": _dream_lite,
}


def whole(name: str) -> tuple[Any, Callable[[], Tensor]]:
    """Return what `cached` takes, and a function that samples with it."""
    if name in WATCHED:
        return WATCHED[name]()
    made = work(name)
    return made.pipe, made.run

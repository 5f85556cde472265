"""Small random U-Nets by name with example inputs, a tiny pipeline, and a plain denoising loop for the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from torch import Tensor, nn

from deepcache.forward import full_forward, shallow_forward
from deepcache.models.class_conditional import ClassConditionalPipeline, ClassEmbedder
from deepcache.views import Cut

TOKENS, CONTEXT_DIM = 5, 8

_DDPM = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
_ATTENTION = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
_CONDITION = {
    **_DDPM,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": CONTEXT_DIM,
}
_FOUR_LEVELS = {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 2}

# name: (family, configuration, names of the inputs it needs beside its positional ones)
_PROBLEMS: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[str, ...]]] = {
    "ddpm": (UNet2DModel, {**_DDPM, "layers_per_block": 2, "downsample_padding": 0}, ()),
    "ddpm-attention": (UNet2DModel, _DDPM | _ATTENTION, ()),
    "ddpm-classes": (UNet2DModel, {**_DDPM, "num_class_embeds": 10}, ("class_labels",)),
    "ddpm-timestep-classes": (UNet2DModel, {**_DDPM, "class_embed_type": "timestep"}, ("class_labels",)),
    "ddpm-resnet-blocks": (
        UNet2DModel,
        {
            **_DDPM,
            "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D"),
            "resnet_time_scale_shift": "scale_shift",
        },
        (),
    ),
    "ddpm-resnet-samplers": (
        UNet2DModel,
        {
            **_DDPM,
            "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
            "downsample_type": "resnet",
            "upsample_type": "resnet",
        },
        (),
    ),
    "ddpm-fourier": (UNet2DModel, {**_DDPM, "time_embedding_type": "fourier"}, ()),
    "ddpm-learned": (UNet2DModel, {**_DDPM, "time_embedding_type": "learned", "num_train_timesteps": 1000}, ()),
    "ddpm-no-mid": (UNet2DModel, {**_DDPM, "mid_block_type": None, "center_input_sample": True}, ()),
    "sd-1.5": (  # its topology: four levels of two layers, twelve skips
        UNet2DConditionModel,
        {
            **_CONDITION,
            **_FOUR_LEVELS,
            "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        },
        (),
    ),
    "ldm-4-g": (
        UNet2DConditionModel,
        {
            **_CONDITION,
            **_FOUR_LEVELS,
            "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
            "up_block_types": (*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
            "attention_head_dim": (1, 2, 2, 4),
        },
        (),
    ),
    "sdxl": (
        UNet2DConditionModel,
        {
            **_CONDITION,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + 8,
        },
        ("added_cond_kwargs",),
    ),
    "classes": (UNet2DConditionModel, {**_CONDITION, "num_class_embeds": 10}, ("class_labels",)),
    "concatenated-classes": (
        UNet2DConditionModel,
        {**_CONDITION, "class_embed_type": "timestep", "class_embeddings_concat": True},
        ("class_labels",),
    ),
    "timestep-cond": (UNet2DConditionModel, {**_CONDITION, "time_cond_proj_dim": 6}, ("timestep_cond",)),
    "no-mid": (UNet2DConditionModel, {**_CONDITION, "mid_block_type": None, "center_input_sample": True}, ()),
    "no-attention": (
        UNet2DConditionModel,
        {
            **_CONDITION,
            "down_block_types": ("DownBlock2D", "ResnetDownsampleBlock2D"),
            "mid_block_type": "UNetMidBlock2D",
            "up_block_types": ("ResnetUpsampleBlock2D", "UpBlock2D"),
            "time_embedding_act_fn": "silu",
        },
        (),
    ),
}

NAMES = tuple(_PROBLEMS)
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": DDIMScheduler,
    "plms": lambda: PNDMScheduler(skip_prk_steps=True),
    "pndm": PNDMScheduler,
    "dpm-solver++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
}


def unet(name: str, *, seed: int = 0, **changes: Any) -> nn.Module:
    """The same random weights for the same name and seed; `changes` go into the configuration."""
    kind, config, _ = _PROBLEMS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(**{**config, **changes}).eval().requires_grad_(requires_grad=False)


@cache
def shared(name: str) -> nn.Module:
    """One U-Net for all tests that only run it: no hooks, no `cached`."""
    return unet(name)


@cache
def num_branches(name: str) -> int:
    """Counted without the library: `conv_in`, every resnet of the down side and every downsampler push a skip."""
    kind, config, _ = _PROBLEMS[name]
    with torch.device("meta"):
        down_blocks = kind(**config).down_blocks
    return 1 + sum(len(block.resnets) + len(block.downsamplers or ()) for block in down_blocks)


def branches_of(names: tuple[str, ...]) -> list[tuple[str, int]]:
    return [(name, branch) for name in names for branch in range(num_branches(name))]


def inputs(
    name: str, *, seed: int = 0, batch: int = 2, size: tuple[int, int] = (8, 8), timestep: Any = 701
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the U-Net's `forward`."""
    kind, _, needed = _PROBLEMS[name]
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    is_condition = kind is UNet2DConditionModel
    args = [noise(batch, 4 if is_condition else 3, *size), timestep]
    if is_condition:
        args.append(noise(batch, TOKENS, CONTEXT_DIM))
    everything = {
        "class_labels": torch.arange(3, 3 + batch),
        "timestep_cond": noise(batch, 6),
        "added_cond_kwargs": {"text_embeds": noise(batch, 8), "time_ids": noise(batch, 6)},
    }
    return tuple(args), {key: everything[key] for key in needed}


def pipeline(scheduler: Any = None, *, seed: int = 0) -> ClassConditionalPipeline:
    """A tiny class-conditional latent pipeline; ask it for `output_type="latent"`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vqvae = VQModel(in_channels=3, block_out_channels=(4,), norm_num_groups=4, latent_channels=4, vq_embed_dim=4)
        embedder = ClassEmbedder(num_classes=3, embedding_dim=CONTEXT_DIM)
    pipe = ClassConditionalPipeline(vqvae, unet("ldm-4-g"), embedder, scheduler or DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(
    pipe: ClassConditionalPipeline, *, num_steps: int = 5, seed: int = 0, labels: tuple[int, ...] = (0, 2)
) -> Tensor:
    """What the pipeline samples from a seed, before decoding."""
    generator = torch.Generator().manual_seed(seed)
    return pipe(labels, num_steps, generator=generator, output_type="latent").images


def denoise(pipe: Any, num_steps: int, *, name: str, seed: int = 0) -> Tensor:
    """A loop over `pipe.scheduler` and `pipe.unet` alone, called as diffusers' pipelines call them."""
    (sample, _, *rest), kwargs = inputs(name, seed=seed)
    pipe.scheduler.set_timesteps(num_steps)
    for t in pipe.scheduler.timesteps:
        noise = pipe.unet(sample, t, *rest, **kwargs).sample
        sample = pipe.scheduler.step(noise, t, sample).prev_sample
    return sample


def assert_full_and_shallow_equal_forward(
    model: nn.Module, branch: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Laws 1 and 2: bit for bit."""
    expected = model(*args, **kwargs).sample
    assert expected.isfinite().all()
    cut = Cut.of(model, branch)
    full, feature = full_forward(model, cut, *args, **kwargs)
    shallow = shallow_forward(model, cut, feature, *args, **kwargs)
    torch.testing.assert_close(full.sample, expected, rtol=0, atol=0, msg="a full step differs from forward")
    torch.testing.assert_close(shallow.sample, expected, rtol=0, atol=0, msg="a shallow step differs from forward")


class Aborted(Exception):  # noqa: N818
    """Stands for a user who stops a generation."""


@contextmanager
def aborting(model: nn.Module, call: int) -> Iterator[None]:
    """Inside the block, call number `call` of the U-Net stops before its last convolution."""
    calls = iter(range(100))

    def stop(*_: Any) -> None:
        if next(calls) == call:
            raise Aborted

    with model.conv_out.register_forward_pre_hook(stop):
        yield

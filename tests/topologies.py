"""Small configurations of diffusers' U-Nets by name: every family, and every type of block that can be cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    I2VGenXLUNet,
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import Tensor, nn

CONTEXT_DIM = 8
Noise = Callable[..., Tensor]  # of a shape
Extra = Callable[[Noise, int], dict[str, Any]]  # of noise and the batch: keyword arguments that the U-Net needs


def blocks(*down: str) -> dict[str, tuple[str, ...]]:
    return {"down_block_types": down, "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(down))}


def _none(_noise: Noise, _batch: int) -> dict[str, Any]:
    return {}


def _labels(_noise: Noise, batch: int) -> dict[str, Any]:
    return {"class_labels": torch.arange(3, 3 + batch)}


def _projected_labels(noise: Noise, batch: int) -> dict[str, Any]:
    return {"class_labels": noise(batch, 6)}


def _timestep_cond(noise: Noise, batch: int) -> dict[str, Any]:
    return {"timestep_cond": noise(batch, 6)}


def _text_time(noise: Noise, batch: int) -> dict[str, Any]:
    return {"added_cond_kwargs": {"text_embeds": noise(batch, 8), "time_ids": noise(batch, 6)}}


def _image_embeds(noise: Noise, batch: int) -> dict[str, Any]:
    return {"added_cond_kwargs": {"image_embeds": noise(batch, CONTEXT_DIM)}}


DDPM = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    **blocks("DownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
CONDITION = {
    **DDPM,
    **blocks("CrossAttnDownBlock2D", "DownBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": CONTEXT_DIM,
}
FOUR_LEVELS = {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 2}
SD = {**CONDITION, **FOUR_LEVELS, **blocks(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")}
TEXT_TIME = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 8,
}
MOTION = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    **blocks("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "norm_num_groups": 4,
    "cross_attention_dim": CONTEXT_DIM,
    "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
}
VIDEO = {  # norms of 32 groups are built in
    "sample_size": 8,
    "block_out_channels": (32, 64),
    **blocks("CrossAttnDownBlock3D", "DownBlock3D"),
    "cross_attention_dim": CONTEXT_DIM,
    "attention_head_dim": 4,
}

# name: family, configuration, what the forward pass needs beside its positional arguments
PROBLEMS: dict[str, tuple[type[nn.Module], dict[str, Any], Extra]] = {
    "ddpm": (UNet2DModel, {**DDPM, "layers_per_block": 2, "downsample_padding": 0}, _none),
    "ddpm-attention": (UNet2DModel, {**DDPM, **blocks("DownBlock2D", "AttnDownBlock2D")}, _none),
    "ddpm-classes": (UNet2DModel, {**DDPM, "num_class_embeds": 10}, _labels),
    "ddpm-timestep-classes": (UNet2DModel, {**DDPM, "class_embed_type": "timestep"}, _labels),
    "ddpm-resnet-blocks": (
        UNet2DModel,
        {
            **DDPM,
            **blocks("ResnetDownsampleBlock2D", "DownBlock2D"),
            "resnet_time_scale_shift": "scale_shift",
        },
        _none,
    ),
    "ddpm-resnet-samplers": (
        UNet2DModel,
        {
            **DDPM,
            **blocks("AttnDownBlock2D", "AttnDownBlock2D"),
            "downsample_type": "resnet",
            "upsample_type": "resnet",
        },
        _none,
    ),
    "ddpm-fourier": (UNet2DModel, {**DDPM, "time_embedding_type": "fourier"}, _none),
    "ddpm-learned": (UNet2DModel, {**DDPM, "time_embedding_type": "learned", "num_train_timesteps": 1000}, _none),
    "ddpm-no-mid": (UNet2DModel, {**DDPM, "mid_block_type": None, "center_input_sample": True}, _none),
    "ncsn++": (
        UNet2DModel,
        {
            **DDPM,
            "block_out_channels": (32, 32, 32),
            "layers_per_block": 2,
            **blocks("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
            "time_embedding_type": "fourier",
        },
        _none,
    ),
    "ncsn++-deep-attention": (
        UNet2DModel,
        {**DDPM, "block_out_channels": (32, 32), **blocks("AttnSkipDownBlock2D", "AttnSkipDownBlock2D")},
        _none,
    ),
    "sd-1.5": (UNet2DConditionModel, SD, _none),  # its topology: four levels of two layers, twelve skips
    "sd-2": (
        UNet2DConditionModel,
        {**SD, "use_linear_projection": True, "upcast_attention": True, "attention_head_dim": (1, 2, 2, 4)},
        _none,
    ),
    "sd-inpainting": (UNet2DConditionModel, {**CONDITION, "in_channels": 9}, _none),
    "bk-sdm-base": (UNet2DConditionModel, {**SD, "layers_per_block": 1}, _none),
    "bk-sdm-small": (UNet2DConditionModel, {**SD, "layers_per_block": 1, "mid_block_type": None}, _none),
    "bk-sdm-tiny": (
        UNet2DConditionModel,
        {
            **CONDITION,
            **blocks(*["CrossAttnDownBlock2D"] * 3),
            "block_out_channels": (8, 16, 16),
            "mid_block_type": None,
        },
        _none,
    ),
    "sdxl": (
        UNet2DConditionModel,
        {
            **CONDITION,
            **blocks("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            **TEXT_TIME,
            "block_out_channels": (8, 16, 16),
            "layers_per_block": 2,
            "transformer_layers_per_block": (1, 1, 2),
            "use_linear_projection": True,
        },
        _text_time,
    ),
    "ldm-4-g": (
        UNet2DConditionModel,
        {
            **CONDITION,
            **FOUR_LEVELS,
            **blocks("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
            "attention_head_dim": (1, 2, 2, 4),
        },
        _none,
    ),
    "classes": (UNet2DConditionModel, {**CONDITION, "num_class_embeds": 10}, _labels),
    "concatenated-classes": (
        UNet2DConditionModel,
        {**CONDITION, "class_embed_type": "timestep", "class_embeddings_concat": True},
        _labels,
    ),
    "projected-classes": (
        UNet2DConditionModel,
        {**CONDITION, "class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 6},
        _projected_labels,
    ),
    "timestep-cond": (UNet2DConditionModel, {**CONDITION, "time_cond_proj_dim": 6}, _timestep_cond),
    "no-mid": (UNet2DConditionModel, {**CONDITION, "mid_block_type": None, "center_input_sample": True}, _none),
    "no-attention": (
        UNet2DConditionModel,
        {
            **CONDITION,
            **blocks("DownBlock2D", "ResnetDownsampleBlock2D"),
            "mid_block_type": "UNetMidBlock2D",
            "time_embedding_act_fn": "silu",
        },
        _none,
    ),
    "uneven-layers": (UNet2DConditionModel, {**CONDITION, "layers_per_block": (1, 3)}, _none),
    "only-cross-attention": (
        UNet2DConditionModel,
        {**CONDITION, "only_cross_attention": True, "time_embedding_type": "fourier"},
        _none,
    ),
    "deepfloyd-if": (
        UNet2DConditionModel,
        {
            **CONDITION,
            **blocks("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "block_out_channels": (8, 16, 16),
            "layers_per_block": 2,
            "attention_head_dim": 4,
            "act_fn": "gelu",
            "resnet_time_scale_shift": "scale_shift",
            "resnet_skip_time_act": True,
            "cross_attention_dim": 32,
            "cross_attention_norm": "group_norm",
            "encoder_hid_dim": CONTEXT_DIM,
            "encoder_hid_dim_type": "text_proj",
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": 2,
        },
        _none,
    ),
    "kandinsky-2.2": (
        UNet2DConditionModel,
        {
            **CONDITION,
            **blocks("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "attention_head_dim": 4,
            "encoder_hid_dim": CONTEXT_DIM,
            "encoder_hid_dim_type": "image_proj",
            "addition_embed_type": "image",
        },
        _image_embeds,
    ),
    "animatediff": (UNetMotionModel, MOTION, _none),
    "animatediff-sdxl": (UNetMotionModel, {**MOTION, **TEXT_TIME, "use_motion_mid_block": False}, _text_time),
    "modelscope": (UNet3DConditionModel, VIDEO, _none),
    "svd": (
        UNetSpatioTemporalConditionModel,
        {
            "sample_size": 8,
            "block_out_channels": (32, 64),
            **blocks("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "cross_attention_dim": CONTEXT_DIM,
            "num_attention_heads": (2, 2),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 3 * 8,
        },
        _none,
    ),
    "i2vgen-xl": (I2VGenXLUNet, {**VIDEO, "layers_per_block": 1}, _none),
}

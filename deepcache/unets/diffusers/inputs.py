"""The inputs of diffusers' U-Nets as their configuration tells them: one call for one sample, on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import I2VGenXLUNet, UNet2DModel, UNet3DConditionModel, UNetMotionModel, UNetSpatioTemporalConditionModel
from torch import Tensor

from deepcache.plan import require_whole
from deepcache.unets.calls import CLIP_TOKENS, Call, sides

NUM_FRAMES = 16  # the length of a video where nothing tells it: the default of diffusers' pipelines
NUM_TIME_IDS = 6  # SDXL's; another split between the time ids and the text embedding costs the same


def example(
    unet: Any, *, context_tokens: int | None = None, size: tuple[int, int] | None = None, num_frames: int | None = None
) -> Call:
    """Return one call of a U-Net (`Family.example`); without `context_tokens`, 77, and 1 for Stable Video Diffusion."""
    config = unet.config
    for name, number in (("context_tokens", context_tokens), ("num_frames", num_frames)):
        if number is not None:
            require_whole(name, number, at_least=1)
    height, width = sides(config.sample_size if size is None else size)
    if isinstance(unet, UNet2DModel):
        return (_meta(1, config.in_channels, height, width), 0), _labels(config)
    dims = getattr(config, "encoder_hid_dim", None) or config.cross_attention_dim
    dim = dims if isinstance(dims, int) else dims[0]
    tokens = context_tokens or CLIP_TOKENS
    frames = num_frames or getattr(config, "num_frames", None) or NUM_FRAMES
    if isinstance(unet, UNetSpatioTemporalConditionModel):
        num_ids = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
        video = _meta(1, frames, config.in_channels, height, width)
        return (video, 0, _meta(1, context_tokens or 1, dim), _meta(1, num_ids)), {}
    if isinstance(unet, I2VGenXLUNet):
        video = _meta(1, config.in_channels, frames, height, width)
        conditions = {"fps": _meta(1), "image_latents": video, "image_embeddings": _meta(1, dim)}
        return (video, 0), {**conditions, "encoder_hidden_states": _meta(1, tokens, dim)}
    is_video = isinstance(unet, (UNet3DConditionModel, UNetMotionModel))
    sample = _meta(1, config.in_channels, *[frames] * is_video, height, width)
    rows = frames if isinstance(unet, UNetMotionModel) else 1
    context = None if _image_dim(config) else _meta(rows, tokens, dim)
    return (sample, 0, context), {**_labels(config), **_conditions(config)}


def _labels(config: Any) -> dict[str, Any]:
    """Return the class labels that a configuration asks for."""
    kind, is_counted = getattr(config, "class_embed_type", None), getattr(config, "num_class_embeds", None)
    if kind is None and not is_counted:
        return {}
    if kind in ("projection", "simple_projection"):
        return {"class_labels": _meta(1, config.projection_class_embeddings_input_dim)}
    if kind == "identity":
        width = getattr(config, "time_embedding_dim", None) or 4 * config.block_out_channels[0]
        return {"class_labels": _meta(1, width)}
    return {"class_labels": torch.zeros(1, dtype=torch.int64, device="meta")}


def _conditions(config: Any) -> dict[str, Any]:
    """Return the added conditions that a configuration asks for."""
    found: dict[str, Any] = {}
    if getattr(config, "time_cond_proj_dim", None):
        found["timestep_cond"] = _meta(1, config.time_cond_proj_dim)
    if getattr(config, "addition_embed_type", None) == "text_time":
        width = config.projection_class_embeddings_input_dim - NUM_TIME_IDS * config.addition_time_embed_dim
        found["added_cond_kwargs"] = {"text_embeds": _meta(1, width), "time_ids": _meta(1, NUM_TIME_IDS)}
    if dim := _image_dim(config):
        found["added_cond_kwargs"] = {"image_embeds": _meta(1, dim)}
    return found


def _image_dim(config: Any) -> int | None:
    """Return the size of the image embedding that stands for the context, as in Kandinsky 2.2; None without one."""
    return config.encoder_hid_dim if getattr(config, "encoder_hid_dim_type", None) == "image_proj" else None


def _meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")

"""`UNet2DModel`: DDPM and its relatives."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.stages import Conditions
from deepcache.unets.inputs import Inputs


def embed(
    unet: UNet2DModel,
    sample: Tensor,
    timestep: Tensor | float | int,
    class_labels: Tensor | None = None,
    return_dict: bool = True,  # noqa: FBT001, FBT002 (the signature of forward)
) -> Inputs:
    """Embed the timestep and the class, as `UNet2DModel.forward` does."""
    t = timestep if isinstance(timestep, Tensor) else torch.tensor(timestep, dtype=torch.long)  # cut, as there
    t = t.to(sample.device).reshape(-1) * torch.ones(sample.shape[0], dtype=t.dtype, device=sample.device)  # (B,)
    temb = unet.time_embedding(unet.time_proj(t).to(unet.dtype))
    if (unet.class_embedding is None) != (class_labels is None):
        given = "none" if class_labels is None else "some"
        raise DeepCacheError(
            f"expected class_labels {'for' if class_labels is None else 'only for'} a U-Net with class embeddings; "
            f"{given} came; pass class_labels exactly when the U-Net's config has class_embed_type or num_class_embeds"
        )
    if class_labels is not None:
        if unet.config.class_embed_type == "timestep":
            class_labels = unet.time_proj(class_labels)
        temb = temb + unet.class_embedding(class_labels).to(unet.dtype)
    if unet.config.center_input_sample:
        sample = 2 * sample - 1.0
    divisor = t.reshape(-1, 1, 1, 1) if unet.config.time_embedding_type == "fourier" else None
    return Inputs(sample, Conditions(temb, {}), divisor=divisor, return_dict=return_dict)


def head(unet: UNet2DModel, hidden: Tensor, inputs: Inputs) -> UNet2DOutput | tuple[Tensor]:
    """The U-Net's output from g_0."""
    hidden = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    if inputs.divisor is not None:
        hidden = hidden / inputs.divisor
    return UNet2DOutput(sample=hidden) if inputs.return_dict else (hidden,)

"""`UNet2DConditionModel`: Stable Diffusion 1, 2 and XL, and latent diffusion with a class as context."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, cat

from deepcache.errors import UnsupportedUNetError
from deepcache.stages import Conditions
from deepcache.unets.inputs import Inputs

_MASKED = -10000.0  # the bias diffusers gives to a masked token


def embed(
    unet: UNet2DConditionModel,
    sample: Tensor,
    timestep: Tensor | float | int,
    encoder_hidden_states: Tensor,
    class_labels: Tensor | None = None,
    timestep_cond: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    added_cond_kwargs: dict[str, Tensor] | None = None,
    down_block_additional_residuals: tuple[Tensor, ...] | None = None,
    mid_block_additional_residual: Tensor | None = None,
    down_intrablock_additional_residuals: tuple[Tensor, ...] | None = None,
    encoder_attention_mask: Tensor | None = None,
    return_dict: bool = True,  # noqa: FBT001, FBT002 (the signature of forward)
) -> Inputs:
    """Embed timestep, class and added conditions, as `UNet2DConditionModel.forward` does.

    Raises:
        UnsupportedUNetError: an optional input, or FreeU, that a cached forward does not know.
    """
    controlnet = down_block_additional_residuals is not None and mid_block_additional_residual is not None
    only_residuals = down_block_additional_residuals is not None and not controlnet
    _refuse(
        {
            "T2I-Adapter residuals (down_intrablock_additional_residuals)": down_intrablock_additional_residuals,
            "down_block_additional_residuals without mid_block_additional_residual": only_residuals,
            "GLIGEN (cross_attention_kwargs['gligen'])": (cross_attention_kwargs or {}).get("gligen"),
            "a LoRA scale (cross_attention_kwargs['scale'])": "scale" in (cross_attention_kwargs or {}),
            "an image hint (addition_embed_type='image_hint')": unet.config.addition_embed_type == "image_hint",
            "FreeU (pipe.enable_freeu)": any(getattr(block, "b1", None) for block in unet.up_blocks),
        }
    )
    fit_skips = any(side % 2**unet.num_upsamplers for side in sample.shape[-2:])
    if unet.config.center_input_sample:
        sample = 2 * sample - 1.0
    temb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), timestep_cond)
    class_emb = unet.get_class_embed(sample=sample, class_labels=class_labels)
    if class_emb is not None:
        temb = cat([temb, class_emb], dim=-1) if unet.config.class_embeddings_concat else temb + class_emb
    aug_emb = unet.get_aug_embed(
        emb=temb, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
    )
    temb = temb if aug_emb is None else temb + aug_emb
    if unet.time_embed_act is not None:
        temb = unet.time_embed_act(temb)
    context = {
        "encoder_hidden_states": unet.process_encoder_hidden_states(
            encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
        ),
        "attention_mask": _bias(attention_mask, sample),
        "encoder_attention_mask": _bias(encoder_attention_mask, sample),
        "cross_attention_kwargs": cross_attention_kwargs,
    }
    return Inputs(
        sample,
        Conditions(temb, context),
        fit_skips=fit_skips,
        skip_residuals=down_block_additional_residuals,
        mid_residual=mid_block_additional_residual if controlnet else None,
        return_dict=return_dict,
    )


def head(unet: UNet2DConditionModel, hidden: Tensor, inputs: Inputs) -> UNet2DConditionOutput | tuple[Tensor]:
    """The U-Net's output from g_0."""
    if unet.conv_norm_out:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    hidden = unet.conv_out(hidden)
    return UNet2DConditionOutput(sample=hidden) if inputs.return_dict else (hidden,)


def _bias(mask: Tensor | None, sample: Tensor) -> Tensor | None:
    return None if mask is None else ((1 - mask.to(sample.dtype)) * _MASKED).unsqueeze(1)  # (B, 1, tokens)


def _refuse(refused: dict[str, object]) -> None:
    for name, came in refused.items():
        if came is not None and came is not False:
            raise UnsupportedUNetError(f"{name} cannot be cached yet; run this generation outside deepcache.cached")

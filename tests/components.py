"""Small random components of diffusers pipelines: U-Nets, autoencoders, ControlNets, adapters, and their conditions."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    I2VGenXLUNet,
    PriorTransformer,
    T2IAdapter,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from deepcache.models.embedded import WEIGHTS
from tests.topologies import CONDITION, CONTEXT_DIM, MOTION, PROBLEMS, TEXT_TIME, blocks

SIZE, FRAMES, TOKENS = 8, 2, 5
VIDEO = {"num_frames": FRAMES, "height": SIZE, "width": SIZE}


def random(module: nn.Module) -> Any:
    """For evaluation, and with noise where training begins with zeros: residuals and motion would do nothing."""
    for weight in module.parameters():
        if weight.dim() > 1 and not weight.any():
            nn.init.normal_(weight, std=0.2)
    return module.eval().requires_grad_(requires_grad=False)


def unet(**changes: Any) -> Any:
    """As Stable Diffusion's, of two levels."""
    return random(UNet2DConditionModel(**{**CONDITION, **changes}))


def unet_xl() -> Any:
    return unet(**TEXT_TIME, use_linear_projection=True)


def unet_of_pixels() -> Any:
    return random(UNet2DModel(**PROBLEMS["ddpm-attention"][1]))


def unet_of_images(num_tokens: int = 2, **changes: Any) -> Any:
    """As an IP-Adapter leaves it."""
    model, processors = unet(**changes), {}
    for name, processor in model.attn_processors.items():
        is_cross = name.endswith("attn2.processor")
        width = model.get_submodule(name.removesuffix(".processor")).inner_dim
        adapted = IPAdapterAttnProcessor2_0(width, CONTEXT_DIM, num_tokens=(num_tokens,))
        processors[name] = random(adapted) if is_cross else processor
    model.set_attn_processor(processors)
    projection = ImageProjection(6, CONTEXT_DIM, num_image_text_embeds=num_tokens)
    model.encoder_hid_proj = random(MultiIPAdapterImageProjection([projection]))
    model.register_to_config(encoder_hid_dim_type="ip_image_proj")
    return model


def unet_of_video() -> Any:
    return random(UNet3DConditionModel(**CONDITION | blocks("CrossAttnDownBlock3D", "DownBlock3D")))


def unet_of_image_and_text() -> Any:
    return random(I2VGenXLUNet(**CONDITION | blocks("CrossAttnDownBlock3D", "DownBlock3D")))


def unet_of_motion() -> Any:
    return random(UNetMotionModel(**MOTION, layers_per_block=1))


def unet_of_frames() -> Any:
    return random(
        UNetSpatioTemporalConditionModel(
            sample_size=SIZE,
            num_frames=FRAMES,
            block_out_channels=(32, 32),  # norms of 32 groups are built in
            **blocks("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            layers_per_block=1,
            num_attention_heads=(1, 1),
            cross_attention_dim=CONTEXT_DIM,
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=3 * 4,
        )
    )


def vae() -> Any:
    return random(AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, force_upcast=False))


def controlnet() -> Any:
    config = {key: value for key, value in CONDITION.items() if key not in ("sample_size", "up_block_types")}
    return random(ControlNetModel(**config, conditioning_embedding_out_channels=(4,)))


def controlnet_xl() -> Any:
    return random(ControlNetModel.from_unet(unet_xl(), conditioning_embedding_out_channels=(4,)))


def adapter() -> Any:
    return random(T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=1))


def unclip() -> dict[str, Any]:
    """All parts of unCLIP; its text encoder reads the embedded models' tokens."""
    width, tokens = 8, CLIPTokenizer.from_pretrained(WEIGHTS / "mini-sd" / "tokenizer", model_max_length=77)
    one = {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": width, "intermediate_size": width}
    special = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id}
    config = CLIPTextConfig(vocab_size=len(tokens), projection_dim=width, **one, **special)
    flat = {"layers_per_block": 1, "norm_num_groups": 4, "block_out_channels": (8, 16)}
    sharper = {
        "sample_size": 2 * SIZE,
        "in_channels": 6,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "attention_head_dim": 4,
    }
    decoder = UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=CONTEXT_DIM,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
        **flat,
    )
    prior = PriorTransformer(num_attention_heads=1, attention_head_dim=8, embedding_dim=width, num_layers=1)
    project = UnCLIPTextProjModel(
        clip_extra_context_tokens=2, clip_embeddings_dim=width, time_embed_dim=4 * 8, cross_attention_dim=CONTEXT_DIM
    )
    return {
        "prior": random(prior),
        "decoder": random(decoder),
        "text_encoder": random(CLIPTextModelWithProjection(config)),
        "tokenizer": tokens,
        "text_proj": random(project),
        "super_res_first": random(UNet2DModel(**sharper, **flat)),
        "super_res_last": random(UNet2DModel(**sharper, **flat)),
        "prior_scheduler": UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        "decoder_scheduler": UnCLIPScheduler(variance_type="learned_range"),
        "super_res_scheduler": UnCLIPScheduler(),
    }


def vision() -> dict[str, Any]:
    """An image encoder and what prepares its images."""
    one = {"num_hidden_layers": 1, "num_attention_heads": 1}
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "projection_dim": CONTEXT_DIM,
        "image_size": SIZE,
        "patch_size": 4,
    }
    config = CLIPVisionConfig(**one, **sizes)
    encoder = random(CLIPVisionModelWithProjection(config))
    return {"image_encoder": encoder, "feature_extractor": CLIPImageProcessor(crop_size=SIZE, size=SIZE)}


def ddim() -> Any:
    return DDIMScheduler(steps_offset=1, clip_sample=False)  # as Stable Diffusion's pipelines want it


def no(*names: str) -> dict[str, None]:
    """Components that a pipeline goes without: prompts come as embeddings."""
    return dict.fromkeys(names)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image(number: int = 1) -> Tensor:
    """(number, 3, H, W) in 0..1."""
    return noise(number, 3, SIZE, SIZE, seed=7).sigmoid()


def mask() -> Tensor:
    """(1, 1, H, W), one half of it."""
    return (torch.arange(SIZE) < SIZE // 2).float().expand(1, 1, SIZE, SIZE)


def text() -> dict[str, Tensor]:
    """A prompt and a negative one."""
    names = ("prompt_embeds", "negative_prompt_embeds")
    return {name: noise(1, TOKENS, CONTEXT_DIM, seed=seed) for seed, name in enumerate(names, start=1)}


def text_xl() -> dict[str, Tensor]:
    names = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return {**text(), **{name: noise(1, 8, seed=seed) for seed, name in enumerate(names, start=3)}}

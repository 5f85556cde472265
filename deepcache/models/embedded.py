"""The embedded models: small, truly trained, and part of the package (a card each, in `weights/NAME`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deepcache.errors import DeepCacheError

if TYPE_CHECKING:
    from deepcache.models.mini_features import MiniFeatures

WEIGHTS = Path(__file__).parent / "weights"
EMBEDDED = {
    "mini-ldm": "class-conditional latent diffusion of coloured garments, 32 x 32; stands for LDM-4-G",
    "mini-ddpm": "unconditional diffusion of coloured garments in pixel space, 32 x 32; stands for DDPM",
    "mini-sd": "text-conditional latent diffusion of coloured garments, 32 x 32; stands for Stable Diffusion v1.5",
    "mini-bk-base": "mini-sd with a resnet fewer a block; stands for BK-SDM Base",
    "mini-bk-small": "mini-bk-base without its middle; stands for BK-SDM Small",
    "mini-bk-tiny": "mini-bk-small without its innermost level; stands for BK-SDM Tiny",
}
PROMPT_TOKENS = 16  # start and end included
CONTEXT_TOKENS = dict.fromkeys(EMBEDDED, PROMPT_TOKENS) | {"mini-ldm": 1, "mini-ddpm": 0}  # a class, and nothing
EXTRACTOR = "mini-features"
_OPTIONS = {"variant": "fp16", "use_safetensors": True, "low_cpu_mem_usage": False}


def load(name: str) -> Any:
    """An embedded model as a diffusers pipeline, in float32 on the CPU.

        pipe = deepcache.models.load("mini-ldm")
        pipe(class_labels=[3, 7], num_inference_steps=50, guidance_scale=1.5).images

    Args:
        name: one of `EMBEDDED`: mini-ldm is a `ClassConditionalPipeline`, mini-ddpm a `DDPMPipeline`, the others
            are each a `StableDiffusionPipeline`.

    Raises:
        DeepCacheError: no such model, or its weights are not there.
    """
    if name not in EMBEDDED:
        raise DeepCacheError(f"expected a model out of {', '.join(EMBEDDED)}; got {name!r}")
    if name == "mini-ldm":
        from deepcache.models.class_conditional import ClassConditionalPipeline

        return ClassConditionalPipeline.from_pretrained(_folder(name), **_OPTIONS)
    if name == "mini-ddpm":
        from diffusers import DDPMPipeline

        return DDPMPipeline.from_pretrained(_folder(name), **_OPTIONS)
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    other, base = {}, pipeline_of(name)
    if name != base:
        other["unet"] = UNet2DConditionModel.from_pretrained(_folder(name), subfolder="unet", **_OPTIONS)
    pipe = StableDiffusionPipeline.from_pretrained(_folder(base), safety_checker=None, **other, **_OPTIONS)
    return pipe.to(torch.float32)  # transformers loads its models as they are stored


def pipeline_of(name: str) -> str:
    """The embedded model whose folder holds `name`'s pipeline: mini-sd's for mini-bk-*, which store a U-Net alone."""
    return "mini-sd" if name.startswith("mini-bk-") else name


def load_extractor() -> MiniFeatures:
    """mini-features, the extractor that the embedded models are measured with."""
    from deepcache.models.mini_features import MiniFeatures

    model = MiniFeatures.from_pretrained(_folder(EXTRACTOR), **_OPTIONS)
    return model.eval()  # type: ignore[no-any-return]


def _folder(name: str) -> str:
    if not (WEIGHTS / name).is_dir():
        raise DeepCacheError(
            f"expected the weights of {name} in {WEIGHTS / name}, which is not there; reinstall the package"
        )
    return str(WEIGHTS / name)

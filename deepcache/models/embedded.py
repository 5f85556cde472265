"""The embedded models: small, truly trained, and part of the package (a card each, in `weights/NAME`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcache.errors import DeepCacheError
from deepcache.models.folders import load_folder
from deepcache.unets.pipelines import unet_of

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
        DeepCacheError: its weights are not there.
    """
    base = pipeline_of(name)
    if name == base:
        return load_folder(_folder(name))
    from diffusers import UNet2DConditionModel

    return load_folder(_folder(base), unet=UNet2DConditionModel.from_pretrained(_folder(name) / "unet", **_OPTIONS))


def pipeline_of(name: str) -> str:
    """The embedded model whose folder holds `name`'s pipeline: mini-sd's for mini-bk-*, which store a U-Net alone."""
    return "mini-sd" if name.startswith("mini-bk-") else name


def is_embedded(pipe: Any) -> bool:
    """Whether a pipeline's U-Net was loaded from this package: it knows garments, their captions and their size."""
    place = unet_of(pipe)[1].config.get("_name_or_path") or ""
    return WEIGHTS in Path(place).parents


def load_extractor() -> MiniFeatures:
    """mini-features, the extractor that the embedded models are measured with."""
    from deepcache.models.mini_features import MiniFeatures

    model = MiniFeatures.from_pretrained(_folder(EXTRACTOR), **_OPTIONS)
    return model.eval()  # type: ignore[no-any-return]


def _folder(name: str) -> Path:
    if not (WEIGHTS / name).is_dir():
        raise DeepCacheError(
            f"expected the weights of {name} in {WEIGHTS / name}, which is not there; reinstall the package"
        )
    return WEIGHTS / name

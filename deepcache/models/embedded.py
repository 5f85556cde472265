"""The embedded models: small, truly trained, and part of the package (a card each, in `weights/NAME`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deepcache.errors import DeepCacheError

if TYPE_CHECKING:
    from deepcache.models.class_conditional import ClassConditionalPipeline
    from deepcache.models.mini_features import MiniFeatures

WEIGHTS = Path(__file__).parent / "weights"
EMBEDDED = {
    "mini-ldm": "class-conditional latent diffusion of coloured garments, 32 x 32; stands for LDM-4-G",
}
EXTRACTOR = "mini-features"


def load(name: str) -> ClassConditionalPipeline:
    """An embedded model as a diffusers pipeline, in float32 on the CPU.

        pipe = deepcache.models.load("mini-ldm")
        pipe(class_labels=[3, 7], num_inference_steps=50, guidance_scale=1.5).images

    Raises:
        DeepCacheError: no such model, or its weights are not there.
    """
    from deepcache.models.class_conditional import ClassConditionalPipeline

    if name not in EMBEDDED:
        raise DeepCacheError(f"expected a model out of {', '.join(EMBEDDED)}; got {name!r}")
    return ClassConditionalPipeline.from_pretrained(  # type: ignore[no-any-return]
        _folder(name), variant="fp16", use_safetensors=True, low_cpu_mem_usage=False
    )


def _folder(name: str) -> str:
    if not (WEIGHTS / name).is_dir():
        raise DeepCacheError(
            f"expected the weights of {name} in {WEIGHTS / name}, which is not there; reinstall the package"
        )
    return str(WEIGHTS / name)


def load_extractor() -> MiniFeatures:
    """mini-features, the extractor that the embedded models are measured with."""
    from deepcache.models.mini_features import MiniFeatures

    model = MiniFeatures.from_pretrained(
        _folder(EXTRACTOR), variant="fp16", use_safetensors=True, low_cpu_mem_usage=False
    )
    return model.eval()  # type: ignore[no-any-return]

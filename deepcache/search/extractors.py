"""What measures the images of `tune`, and whether it knows such images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deepcache.errors import DeepCacheError
from deepcache.metrics import clip_score
from deepcache.metrics import perceptual as perceptual_metric
from deepcache.metrics.clip_score import Clip, load_clip
from deepcache.metrics.perceptual import Perceptual, load_perceptual
from deepcache.models.embedded import SIZE, is_embedded
from deepcache.sampling.conditions import Conditions
from deepcache.sampling.identity import image_size_of
from deepcache.unets.pipelines import unet_of


def distance_for(pipe: Any, given: Perceptual | None) -> Perceptual:
    """The given perceptual distance, or the usual one.

    Raises:
        DeepCacheError: mini-features for images that it was not trained on.
    """
    found = given or load_perceptual(device=unet_of(pipe)[1].device)
    instead = "distance=load_perceptual(FILE) with torchvision's AlexNet weights"
    _require_knows(found.name, perceptual_metric.MINI, pipe, instead, is_given=given is not None)
    return found


def clip_for(pipe: Any, given: Clip | None, asked: Conditions, seeds: Sequence[int]) -> Clip:
    """The given CLIP model, or mini-clip.

    Raises:
        DeepCacheError: no prompts to score, or mini-clip for images that it was not trained on.
    """
    if "prompt" not in asked(seeds[:1]):
        raise DeepCacheError("expected a pipeline with prompts for clip_loss; take psnr_db or perceptual instead")
    found = given or load_clip(device=unet_of(pipe)[1].device)
    instead = "clip=load_clip(...), such as the paper's ViT-g-14"
    _require_knows(found.name, clip_score.MINI, pipe, instead, is_given=given is not None)
    return found


def _require_knows(name: str, mini: str, pipe: Any, instead: str, *, is_given: bool) -> None:
    """Refuse a mini extractor for images that it was not trained on, before anything is sampled.

    Of another model's images of the embedded models' size it measures something only where the caller says so.
    """
    height, width = image_size_of(pipe)
    if name == mini and ((height, width) != SIZE or not (is_given or is_embedded(pipe))):
        raise DeepCacheError(
            f"expected images of {SIZE[0]} x {SIZE[1]} by an embedded model for {name}, got {height} x {width} by a "
            f"{type(pipe).__name__}; pass {instead}"
        )

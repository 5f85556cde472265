"""From trained networks to the folders that the package ships: diffusers' formats, fp16 safetensors."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import VQModel

from deepcache.metrics import reference
from deepcache.metrics.extractors import extract
from deepcache.models import fashion
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.mini_features import MiniFeatures
from deepcache.models.train.denoiser import ConditionalDenoiser, scheduler


def export_ldm(vqvae: VQModel, denoiser: ConditionalDenoiser, out: Path) -> None:
    """The whole pipeline."""
    pipe = ClassConditionalPipeline(vqvae, denoiser.unet, denoiser.embedder, scheduler())
    pipe.to(torch.float16).save_pretrained(out, variant="fp16", safe_serialization=True)


def export_features(model: MiniFeatures, held_out: fashion.Painted, out: Path) -> None:
    """The classifier, and the statistics of held-out images on it as it is stored."""
    model.half().save_pretrained(out, variant="fp16", safe_serialization=True)
    features = extract(model.float().eval(), (held_out.images + 1) / 2)
    reference.save(reference.from_features(features), out / "reference.safetensors")

"""From trained networks to the folders that the package ships: diffusers' formats, fp16 safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMPipeline, StableDiffusionPipeline, UNet2DConditionModel, UNet2DModel, VQModel
from safetensors.numpy import save_file

from bench.training import pixels, text_to_image
from bench.training.denoiser import ConditionalDenoiser, scheduler
from bench.training.tokens import tokenizer
from deepcache.metrics.extractors import MiniExtractor, extract
from deepcache.metrics.reference import NUM_FEATURES
from deepcache.metrics.statistics import Statistics
from deepcache.models import fashion
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.mini_features import MiniFeatures


def export_ldm(vqvae: VQModel, denoiser: ConditionalDenoiser, out: Path) -> None:
    """The whole pipeline."""
    _save(ClassConditionalPipeline(vqvae, denoiser.unet, denoiser.embedder, scheduler()), out)


def export_features(model: MiniFeatures, held_out: fashion.Painted, out: Path) -> None:
    """The classifier, and the statistics of held-out images on it as it is stored."""
    model.half().save_pretrained(out, variant="fp16", safe_serialization=True)
    features = extract(MiniExtractor(model.float().eval()), (held_out.images + 1) / 2)
    save_reference(Statistics.of(features.split()), out / "reference.safetensors")


def save_reference(found: Statistics, path: Path) -> None:
    """Write a reference that is small enough to ship: moments in float32, and `NUM_FEATURES` features in float16."""
    tensors = {"features": found.features[:NUM_FEATURES].astype(np.float16)}
    for kind, moments in (("pooled", found.pooled.moments()), ("spatial", found.spatial.moments())):
        tensors[f"{kind}.mean"] = moments.mean.astype(np.float32)
        tensors[f"{kind}.covariance"] = moments.covariance.astype(np.float32)
    save_file(tensors, str(path))


def export_sd(vae: AutoencoderKL, denoiser: text_to_image.TextDenoiser, out: Path) -> None:
    """The whole pipeline, as Stable Diffusion's is stored."""
    pipe = StableDiffusionPipeline(
        vae,
        denoiser.text_encoder,
        tokenizer(),
        denoiser.unet,
        text_to_image.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    _save(pipe, out)


def export_unet(unet: UNet2DConditionModel, out: Path) -> None:
    """A pruned U-Net alone: mini-sd has the other parts."""
    unet.to(torch.float16).save_pretrained(out / "unet", variant="fp16", safe_serialization=True)


def export_ddpm(unet: UNet2DModel, out: Path) -> None:
    """The whole pipeline."""
    _save(DDPMPipeline(unet, pixels.scheduler()), out)


def _save(pipe: Any, out: Path) -> None:
    pipe.to(torch.float16).save_pretrained(out, variant="fp16", safe_serialization=True)

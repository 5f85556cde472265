"""Published models with random weights: pipelines whose speed and MACs are real, and whose images are noise."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from deepcache.errors import DeepCacheError
from deepcache.models.checkpoint import on_meta
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.embedded import WEIGHTS
from deepcache.models.registry import NETWORKS, PUBLISHED, published

_PERIOD = 1_048_573  # length of the noise; a prime, so that rows of a weight are not alike
_STRIDE = 7919  # distance in the noise between the start of one weight and of the next


def random_pipeline(
    name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seed: int = 0
) -> Any:
    """A published model's pipeline with weights that depend on the seed alone.

    Every weight is cut out of one block of noise and scaled by its fan-in; norms are the identity, biases are 0.
    Prompts are cut into the tokens of mini-sd. `name` is that of a published model, or of networks that models share.
    """
    model = published(name)
    if model is None or model.scheduler is None:
        names = ", ".join(dict.fromkeys([*NETWORKS, *PUBLISHED]))
        raise DeepCacheError(f"expected a real model for random weights, out of {names}; got {name!r}")
    order = sorted(model.networks, key=lambda name: name == "unet")  # the U-Net is last; the order decides the noise
    networks = nn.ModuleDict({name: on_meta(*model.networks[name]) for name in order})
    networks.to(dtype).to_empty(device=device).requires_grad_(requires_grad=False)
    noise = torch.randn(_PERIOD, generator=torch.Generator().manual_seed(seed)).to(device, dtype).repeat(2)
    for number, (place, weight) in enumerate(networks.named_parameters()):
        if weight.dim() > 1:
            offset = (number * _STRIDE) % _PERIOD
            for chunk in weight.view(-1).split(_PERIOD):
                chunk.copy_(noise[offset : offset + len(chunk)])
            weight.mul_(weight[0].numel() ** -0.5)
        else:
            weight.fill_(0.0 if place.endswith("bias") else 1.0)
    for positions in networks.buffers():  # the positions of CLIP's tokens are the only buffers
        positions.copy_(torch.arange(positions.numel(), device=positions.device).view_as(positions))
    _, kind, config = model.scheduler
    return _assembled(dict(networks), getattr(diffusers, kind).from_config(config))


def _assembled(networks: dict[str, Any], scheduler: Any) -> Any:
    if "text_encoder" not in networks:
        build = ClassConditionalPipeline if "class_embedder" in networks else diffusers.DDPMPipeline
        return build(**networks, scheduler=scheduler)
    from transformers import CLIPTokenizer

    # mini-sd's tokens are among those of every CLIP; prompts of CLIP have 77
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "mini-sd" / "tokenizer", model_max_length=77)
    parts = {**networks, "tokenizer": tokenizer, "scheduler": scheduler}
    if "text_encoder_2" in networks:
        return diffusers.StableDiffusionXLPipeline(**parts, tokenizer_2=tokenizer)
    unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**parts, **unchecked)

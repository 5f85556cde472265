"""Published models with random weights: pipelines whose speed and MACs are real, and whose images are noise."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from deepcache.errors import DeepCacheError
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.configurations import on_meta
from deepcache.models.embedded import WEIGHTS
from deepcache.models.registry import NETWORKS, PUBLISHED, published

_PERIOD = 1_048_573  # length of the noise; a prime, so that rows of a weight are not alike
_STRIDE = 7919  # distance in the noise between the start of one weight and of the next


def random_pipeline(
    name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seed: int = 0
) -> Any:
    """A published model's pipeline with weights that depend on the seed alone.

    Every weight is cut out of one block of noise and scaled by its fan-in; norms are the identity, biases are 0.
    Prompts are cut into the tokens of mini-sd.

    Args:
        name: name of a published model, or of the networks that several models share.
        dtype: dtype of the weights.
        device: device on which the weights are filled.
        seed: seed of the noise.

    Raises:
        DeepCacheError: there is no such model.
    """
    model = published(name)
    if model is None or model.scheduler is None:
        names = ", ".join(dict.fromkeys([*NETWORKS, *PUBLISHED]))
        raise DeepCacheError(f"expected a real model for random weights, out of {names}; got {name!r}")
    others = {name: on_meta(*network) for name, network in model.networks.items() if name != "unet"}
    networks = {**others, "unet": on_meta(*model.networks["unet"])}  # the order decides the noise
    noise = torch.randn(_PERIOD, generator=torch.Generator().manual_seed(seed)).to(device, dtype).repeat(2)
    _fill(nn.ModuleDict(networks).to(dtype).to_empty(device=device).requires_grad_(requires_grad=False), noise)
    _, kind, config = model.scheduler
    return _assembled(networks, getattr(diffusers, kind).from_config(config))


def _fill(networks: nn.Module, noise: Tensor) -> None:
    for number, (name, weight) in enumerate(networks.named_parameters()):
        if weight.dim() > 1:
            offset = (number * _STRIDE) % _PERIOD
            for chunk in weight.view(-1).split(_PERIOD):
                chunk.copy_(noise[offset : offset + len(chunk)])
            weight.mul_(weight[0].numel() ** -0.5)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
    for positions in networks.buffers():  # the positions of CLIP's tokens are the only buffers
        positions.copy_(torch.arange(positions.numel(), device=positions.device).view_as(positions))


def _assembled(networks: dict[str, nn.Module], scheduler: Any) -> Any:
    if "class_embedder" in networks:
        return ClassConditionalPipeline(**networks, scheduler=scheduler)  # type: ignore[arg-type]
    if "text_encoder_2" in networks:
        tokenizers = {"tokenizer": _tokenizer(), "tokenizer_2": _tokenizer()}
        return diffusers.StableDiffusionXLPipeline(**networks, **tokenizers, scheduler=scheduler)
    if "text_encoder" in networks:
        unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return diffusers.StableDiffusionPipeline(**networks, tokenizer=_tokenizer(), scheduler=scheduler, **unchecked)
    return diffusers.DDPMPipeline(**networks, scheduler=scheduler)


def _tokenizer() -> Any:
    """mini-sd's tokenizer, whose tokens are among those of every CLIP, at the length of CLIP's prompts."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(WEIGHTS / "mini-sd" / "tokenizer", model_max_length=77)

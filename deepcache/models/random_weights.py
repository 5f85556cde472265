"""The real models without weights: ready pipelines whose networks are filled with noise, for speed and MACs."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from deepcache.errors import DeepCacheError
from deepcache.models.architectures import SHARED, architecture
from deepcache.models.class_conditional import ClassConditionalPipeline
from deepcache.models.embedded import WEIGHTS
from deepcache.models.networks import MODEL_SCHEDULERS, NETWORKS, on_meta

_PERIOD = 1_048_573  # a prime, so that rows of a weight are not alike
_STRIDE = 7919  # from the noise of a weight to that of the next


def random_pipeline(
    name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seed: int = 0
) -> Any:
    """A real model's architecture as a pipeline, with weights that depend on the seed alone.

    Every weight is drawn from one block of noise, scaled by its fan-in; norms are the identity, biases 0. Nothing is
    ever learned from such a model's images. Prompts are cut into the tokens of mini-sd.

    Args:
        name: a real model's.
        dtype: of the weights.
        device: where they are filled.
        seed: of the noise.

    Raises:
        DeepCacheError: no such model.
    """
    known = SHARED.get(name, name)
    if known not in MODEL_SCHEDULERS:
        names = ", ".join([*MODEL_SCHEDULERS, *SHARED])
        raise DeepCacheError(f"expected a real model for random weights, out of {names}; got {name!r}")
    networks = {part: on_meta(*network) for part, network in NETWORKS.get(known, {}).items()}
    networks["unet"] = architecture(known).meta().eval()
    noise = torch.randn(_PERIOD, generator=torch.Generator().manual_seed(seed)).to(device, dtype).repeat(2)
    _fill(nn.ModuleDict(networks).to(dtype).to_empty(device=device).requires_grad_(requires_grad=False), noise)
    kind, config = MODEL_SCHEDULERS[known]
    return _assembled(networks, getattr(diffusers, kind).from_config(config))


def _fill(networks: nn.Module, noise: Tensor) -> None:
    for number, (name, weight) in enumerate(networks.named_parameters()):
        if weight.dim() > 1:
            offset = (number * _STRIDE) % _PERIOD
            _tile(weight.view(-1), noise[offset : offset + _PERIOD])
            weight.mul_(weight[0].numel() ** -0.5)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
    for positions in networks.buffers():  # CLIP's: the only ones there are
        positions.copy_(torch.arange(positions.numel(), device=positions.device).view_as(positions))


def _tile(values: Tensor, noise: Tensor) -> None:
    for part in values.split(len(noise)):
        part.copy_(noise[: len(part)])


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
    """mini-sd's, whose tokens are among those of every CLIP, at CLIP's length."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(WEIGHTS / "mini-sd" / "tokenizer", model_max_length=77)

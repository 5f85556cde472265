"""The networks that a pipeline runs beside its U-Net: the MACs of its text encoders and of its decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import nn

from deepcache.costs.macs import counting
from deepcache.errors import FAILURES
from deepcache.unets.calls import CLIP_TOKENS
from deepcache.unets.structure import on_meta

_LONGEST = 4096  # tokens of a prompt; a tokenizer without a limit of its own says 10^30
_DECODERS = ("vae", "vqvae", "movq")
_NOT_RUN = ("unet", "motion_adapter")  # the U-Net itself, and the adapter that is inside the U-Net already


@dataclass(frozen=True)
class Part:
    """The MACs of one of a pipeline's networks for one image (or video), and whether guidance runs it a second time."""

    name: str
    macs: int
    is_guided: bool

    def of_image(self, *, guided: bool) -> int:
        """Return the MACs for one image, with guidance or without."""
        return self.macs * (2 if guided and self.is_guided else 1)


def parts(owner: Any, size: tuple[int, ...], num_frames: int, tokens: int | None) -> tuple[list[Part], list[str]]:
    """Return the networks of a pipeline beside its U-Net that are counted, as they run, and the names of the others.

    The latents have this size; an image has one frame. Where `tokens` is None, prompts are as long as tokenizers say.
    """
    encoders, decoders, missing = [], [], []
    for name, value in vars(owner).items():
        if not isinstance(value, nn.Module) or name in _NOT_RUN or name.startswith("_"):
            continue
        if not any(isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)) for module in value.modules()):
            continue  # the network has no weighty layer
        network = getattr(value, "_orig_mod", value)
        try:
            if name.startswith("text_encoder"):
                macs = text_encoder_macs(network, tokens or num_tokens(owner, name))
                encoders.append(Part(name, macs, is_guided=True))
            elif name in _DECODERS:
                decoders.append(Part(f"{name} decoder", decoder_macs(network, size, num_frames), is_guided=False))
            else:
                missing.append(name)
        except FAILURES:
            missing.append(name)
    return encoders + decoders, missing


def num_tokens(owner: Any, name: str = "text_encoder") -> int:
    """Return the length of a prompt: as the tokenizer says, or as the text encoder can take; 1 without either."""
    if not hasattr(owner, "text_encoder") and not hasattr(owner, "tokenizer"):
        return 1
    tokenizer = getattr(owner, name.replace("text_encoder", "tokenizer"), None)
    config = getattr(getattr(owner, name, None), "config", None)
    limits = (getattr(tokenizer, "model_max_length", None), getattr(config, "max_position_embeddings", None))
    return next((limit for limit in limits if isinstance(limit, int) and limit <= _LONGEST), CLIP_TOKENS)


def pixels_a_side(owner: Any) -> int:
    """Return how many pixels of the image, along a side, one element of the U-Net's sample stands for."""
    vae = next((vae for name in _DECODERS if (vae := getattr(owner, name, None)) is not None), None)
    return 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)


def text_encoder_macs(encoder: nn.Module, tokens: int) -> int:
    """Return the MACs of encoding one prompt."""
    prompt = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    return _count(encoder, lambda twin: twin(prompt))


def decoder_macs(vae: Any, size: tuple[int, ...], num_frames: int = 1) -> int:
    """Return the MACs of decoding one latent image, or the frames of a video."""
    channels = getattr(vae.config, "vq_embed_dim", None) or vae.config.latent_channels
    if isinstance(vae, AutoencoderKLTemporalDecoder):
        frames = torch.empty(num_frames, channels, *size, device="meta")
        return _count(vae, lambda twin: twin.decode(frames, num_frames))
    latent = torch.empty(1, channels, *size, device="meta")
    return num_frames * _count(vae, lambda twin: twin.decode(latent))


def _count(network: nn.Module, run: Callable[[Any], Any]) -> int:
    """Count everything: layers as for a U-Net, and the attention products of any kind of layer."""
    twin = on_meta(network)
    with torch.no_grad(), counting(twin) as (counts, products):
        run(twin)
    return products.macs + sum(layer.total() for layer in counts.values())

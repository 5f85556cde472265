"""The networks that a pipeline runs beside its U-Net: the MACs of its text encoders and of its decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deepcache.costs.macs import EVERYTHING, StageCost, counting
from deepcache.errors import FAILURES
from deepcache.unets.calls import CLIP_TOKENS
from deepcache.unets.structure import on_meta

LONGEST = 4096  # tokens of a prompt; a tokenizer without a limit of its own says 10^30
DECODERS = ("vae", "vqvae", "movq")
_NOT_RUN = ("unet", "motion_adapter")  # the U-Net itself, and the adapter that is inside the U-Net already


@dataclass(frozen=True)
class Part:
    """One of a pipeline's networks.

    Attributes:
        name: the name of the network in the pipeline.
        macs: the MACs for one image (or video), without guidance.
        is_guided: whether guidance runs the network a second time, for the negative prompt.
    """

    name: str
    macs: int
    is_guided: bool

    def of_image(self, *, guided: bool) -> int:
        """Return the MACs for one image, with guidance or without."""
        return self.macs * (1 + (guided and self.is_guided))


def parts(owner: Any, size: tuple[int, ...], num_frames: int, tokens: int | None) -> tuple[list[Part], list[str]]:
    """Count the networks of a pipeline beside its U-Net.

    Args:
        owner: a pipeline, or anything with its networks as attributes.
        size: height and width of the latents that the decoder takes.
        num_frames: the length of a video; 1 for an image.
        tokens: the length of a prompt; None means as each tokenizer says.

    Returns:
        The networks that are counted, in the order in which they run, and the names of those that are not.
    """
    found, missing = [], []
    for name, network in networks(owner).items():
        is_text = name.startswith("text_encoder")
        try:
            if is_text:
                macs = text_encoder_macs(network, tokens or num_tokens(owner, name))
            elif name in DECODERS:
                macs = decoder_macs(network, size, num_frames)
            else:
                missing.append(name)
                continue
            found.append(Part(name if is_text else f"{name} decoder", macs, is_text))
        except FAILURES:
            missing.append(name)
    return sorted(found, key=lambda part: not part.is_guided), missing


def networks(owner: Any) -> dict[str, nn.Module]:
    """Return the networks of a pipeline by name, without its U-Net and without those that have no weighty layer."""
    weighty = (nn.Linear, nn.Conv2d, nn.Conv3d)
    return {
        name: getattr(value, "_orig_mod", value)
        for name, value in vars(owner).items()
        if isinstance(value, nn.Module)
        and name not in _NOT_RUN
        and not name.startswith("_")
        and any(isinstance(module, weighty) for module in value.modules())
    }


def num_tokens(owner: Any, name: str = "text_encoder") -> int:
    """Return the length of a prompt: as the tokenizer says, or as the text encoder can take; 1 without either."""
    if not hasattr(owner, "text_encoder") and not hasattr(owner, "tokenizer"):
        return 1
    tokenizer = getattr(owner, name.replace("text_encoder", "tokenizer"), None)
    config = getattr(getattr(owner, name, None), "config", None)
    limits = (getattr(tokenizer, "model_max_length", None), getattr(config, "max_position_embeddings", None))
    return next((limit for limit in limits if isinstance(limit, int) and limit <= LONGEST), CLIP_TOKENS)


def pixels_a_side(owner: Any) -> int:
    """Return how many pixels of the image, along a side, one element of the U-Net's sample stands for."""
    vae = next((vae for name in DECODERS if (vae := getattr(owner, name, None)) is not None), None)
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
    """Count everything, as `deepcache.costs.macs` does, and the attention products of any kind of layer."""
    twin = on_meta(network)
    counts: dict[nn.Module, StageCost] = {}
    products = _AttentionProducts()
    with torch.no_grad(), counting(twin, counts), products:
        run(twin)
    return products.macs + sum(replace(layer, attention=0).total(EVERYTHING) for layer in counts.values())


class _AttentionProducts(TorchFunctionMode):
    """Counts the products of two activations: Q K^T and A V, in one fused function or apart."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is nn.functional.scaled_dot_product_attention:
            query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            self.macs += query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        elif func in _PRODUCTS:
            first = args[_PRODUCTS[func]]
            self.macs += output.numel() * first.shape[-1]
        return output


_PRODUCTS: dict[Any, int] = {  # the position of the first factor among the arguments
    torch.matmul: 0,
    torch.bmm: 0,
    torch.baddbmm: 1,
    Tensor.matmul: 0,
    Tensor.__matmul__: 0,
    Tensor.bmm: 0,
    Tensor.baddbmm: 1,
}

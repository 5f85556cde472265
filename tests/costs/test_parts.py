"""MACs of text encoders and decoders. The oracle is torch's FLOP counter, with biases and norms by hand."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, AutoencoderTiny, VQModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from deepcache.costs import macs
from deepcache.costs.parts import decoder_macs, text_encoder_macs
from deepcache.models.architectures import skeleton

CLIP = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@cache
def stable() -> Any:
    return skeleton("sd-1.5")[0]


ENCODERS: dict[str, Any] = {
    "clip": lambda: CLIPTextModel(CLIPTextConfig(**CLIP)),
    "clip-eager": lambda: CLIPTextModel(CLIPTextConfig(**CLIP, attn_implementation="eager")),
    "clip-projection": lambda: CLIPTextModelWithProjection(CLIPTextConfig(**CLIP, projection_dim=6)),
    "t5": lambda: T5EncoderModel(T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)),
    "sd-1.5": lambda: stable().text_encoder,
}
LEVELS = {"block_out_channels": (4, 8), "norm_num_groups": 4, "latent_channels": 4}
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
DECODERS: dict[str, Any] = {
    "kl": lambda: AutoencoderKL(**LEVELS, **BLOCKS),
    "vq": lambda: VQModel(**LEVELS, **BLOCKS, vq_embed_dim=4),
    "tiny": lambda: AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
    "sd-1.5": lambda: stable().vae,
}


def half_of_flops_and_the_rest(network: nn.Module, run: Any) -> int:
    """Return torch's count of all products, plus biases and norms.

    A bias counts once for an element of a convolution and once for a linear layer; a norm counts two for an element.
    """
    rest = []

    def add(module: Any, _: Any, output: Any) -> None:
        is_norm = isinstance(module, (nn.GroupNorm, nn.LayerNorm))
        if is_norm or module.bias is not None:
            rest.append(2 * output.numel() if is_norm else len(module.bias) * output[0, 0].numel() ** is_conv(module))

    def is_conv(module: Any) -> bool:
        return isinstance(module, (nn.Conv2d, nn.Conv3d))

    kinds = (nn.Conv2d, nn.Conv3d, nn.Linear, nn.GroupNorm, nn.LayerNorm)
    handles = [module.register_forward_hook(add) for module in network.modules() if isinstance(module, kinds)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(network)
    for handle in handles:
        handle.remove()
    return counter.get_total_flops() // 2 + sum(rest)


@pytest.mark.parametrize("tokens", [1, 77])
@pytest.mark.parametrize("name", ENCODERS)
def test_a_text_encoders_macs_are_half_of_torchs_flops_and_biases_and_norms(name: str, tokens: int) -> None:
    encoder = ENCODERS[name]().to("meta").eval()
    prompt = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    assert text_encoder_macs(encoder, tokens) == half_of_flops_and_the_rest(encoder, lambda network: network(prompt))


@pytest.mark.parametrize("size", [(8, 8), (8, 16)])
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoders_macs_are_half_of_torchs_flops_and_biases_and_norms(name: str, size: tuple[int, int]) -> None:
    vae = DECODERS[name]().to("meta").eval()
    latent = torch.empty(1, 4, *size, device="meta")
    expected = half_of_flops_and_the_rest(vae, lambda network: network.decode(latent))
    assert decoder_macs(vae, size) == expected
    assert decoder_macs(vae, size, 3) == 3 * expected  # a video's frames, one after the other


def test_a_video_decoder_sees_all_frames() -> None:
    vae = AutoencoderKLTemporalDecoder(block_out_channels=(32,), layers_per_block=1).to("meta").eval()
    frames = torch.empty(5, 4, 8, 8, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae.decode(frames, 5)
    assert decoder_macs(vae, (8, 8), 5) >= counter.get_total_flops() // 2 > 4 * decoder_macs(vae, (8, 8), 1) // 5


def uncounted(_mode: Any, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return func(*args, **(kwargs or {}))


def test_without_attention_products_a_text_encoder_would_cost_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test of the test: the attention products matter."""
    encoder, prompt = ENCODERS["clip"]().to("meta").eval(), torch.zeros(1, 7, dtype=torch.int64, device="meta")
    monkeypatch.setattr(macs.AttentionProducts, "__torch_function__", uncounted)
    assert text_encoder_macs(encoder, 7) < half_of_flops_and_the_rest(encoder, lambda network: network(prompt))


def test_stable_diffusions_networks_have_the_published_sizes() -> None:
    """Stored values: the number of parameters of the released weights."""
    sizes = {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863}
    assert {name: getattr(stable(), name).num_parameters() for name in sizes} == sizes

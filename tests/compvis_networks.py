"""CompVis' latent diffusion in plain torch, written for the tests: its weights, and what they compute.

Independent of diffusers and of the loader. `found` is a YAML's contents, `state` a checkpoint's `state_dict`.

References: High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Config = dict[str, Any]
Make = Callable[[str, Sequence[int]], Tensor]


class Weights:
    """The weights under a prefix of a checkpoint's `state_dict`; missing weights are made if there is a maker."""

    def __init__(self, state: dict[str, Tensor], prefix: str = "", make: Make | None = None) -> None:
        self.state, self.prefix, self.make = state, prefix, make

    def under(self, name: str) -> Weights:
        return Weights(self.state, f"{self.prefix}{name}.", self.make)

    def get(self, name: str, *shape: int) -> Tensor:
        name = self.prefix + name
        if name not in self.state and self.make is not None:
            self.state[name] = self.make(name, shape)
        return self.state[name]

    def linear(self, x: Tensor, name: str, out: int, *, bias: bool = True) -> Tensor:
        weight = self.get(f"{name}.weight", out, x.shape[-1])
        return F.linear(x, weight, self.get(f"{name}.bias", out) if bias else None)

    def conv(self, x: Tensor, name: str, out: int, kernel: int = 3, **how: Any) -> Tensor:
        how = {"padding": kernel // 2, **how}
        weight = self.get(f"{name}.weight", out, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self.get(f"{name}.bias", out), **how)

    def group_norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        weight, bias = (self.get(f"{name}.{kind}", x.shape[1]) for kind in ("weight", "bias"))
        return F.group_norm(x, 32, weight, bias, eps)

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = (self.get(f"{name}.{kind}", x.shape[-1]) for kind in ("weight", "bias"))
        return F.layer_norm(x, x.shape[-1:], weight, bias)


def classes(state: Any, found: Config, labels: Tensor, make: Make | None = None) -> Tensor:
    """The contexts (B, 1, embed_dim) of labels (B,)."""
    own = found["model"]["params"]["cond_stage_config"]["params"]
    table = Weights(state, "cond_stage_model.", make).get("embedding.weight", own["n_classes"], own["embed_dim"])
    return table[labels][:, None]


def unet(state: Any, found: Config, x: Tensor, t: Tensor, context: Tensor, make: Make | None = None) -> Tensor:
    """The noise that the U-Net predicts from latents (B, C, H, W), timesteps (B,) and contexts (B, 1, D)."""
    own = found["model"]["params"]["unet_config"]["params"]
    w, width = Weights(state, "model.diffusion_model.", make), own["model_channels"]
    emb = w.linear(_timestep(t, width), "time_embed.0", 4 * width)
    emb = w.linear(F.silu(emb), "time_embed.2", 4 * width)

    def block(h: Tensor, name: str, out: int, rate: int) -> Tensor:
        h = _unet_resnet(w.under(f"{name}.0"), h, emb, out)
        return _transformer(w.under(f"{name}.1"), h, context, own) if rate in own["attention_resolutions"] else h

    h = w.conv(x, "input_blocks.0.0", width)
    skips, rate, last = [h], 1, len(own["channel_mult"]) - 1
    for level, mult in enumerate(own["channel_mult"]):
        for _ in range(own["num_res_blocks"]):
            h = block(h, f"input_blocks.{len(skips)}", mult * width, rate)
            skips.append(h)
        if level != last:
            h = w.conv(h, f"input_blocks.{len(skips)}.0.op", h.shape[1], stride=2)
            skips.append(h)
            rate *= 2
    h = _unet_resnet(w.under("middle_block.0"), h, emb, h.shape[1])
    h = _transformer(w.under("middle_block.1"), h, context, own)
    h = _unet_resnet(w.under("middle_block.2"), h, emb, h.shape[1])
    number = 0
    for level, mult in reversed(list(enumerate(own["channel_mult"]))):
        for i in range(own["num_res_blocks"] + 1):
            h = block(torch.cat([h, skips.pop()], dim=1), f"output_blocks.{number}", mult * width, rate)
            if level and i == own["num_res_blocks"]:
                place = 2 if rate in own["attention_resolutions"] else 1
                h = w.conv(F.interpolate(h, scale_factor=2), f"output_blocks.{number}.{place}.conv", h.shape[1])
                rate //= 2
            number += 1
    return w.conv(F.silu(w.group_norm(h, "out.0", 1e-5)), "out.2", own["out_channels"])


def _timestep(t: Tensor, width: int) -> Tensor:
    frequencies = 10000 ** (-torch.arange(width // 2) / (width // 2))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _unet_resnet(w: Weights, x: Tensor, emb: Tensor, out: int) -> Tensor:
    h = w.conv(F.silu(w.group_norm(x, "in_layers.0", 1e-5)), "in_layers.2", out)
    h = h + w.linear(F.silu(emb), "emb_layers.1", out)[..., None, None]
    h = w.conv(F.silu(w.group_norm(h, "out_layers.0", 1e-5)), "out_layers.3", out)
    return h + (x if x.shape[1] == out else w.conv(x, "skip_connection", out, 1))


def _transformer(w: Weights, x: Tensor, context: Tensor, own: Config) -> Tensor:
    width, (height, breadth) = x.shape[1], x.shape[2:]
    heads = own["num_heads"] if "num_head_channels" not in own else width // own["num_head_channels"]
    h = w.conv(w.group_norm(x, "norm", 1e-6), "proj_in", width, 1).flatten(2).transpose(1, 2)  # (B, HW, C)
    for depth in range(own["transformer_depth"]):
        b = w.under(f"transformer_blocks.{depth}")
        own_tokens = b.layer_norm(h, "norm1")
        h = h + _attention(b.under("attn1"), own_tokens, own_tokens, heads)
        h = h + _attention(b.under("attn2"), b.layer_norm(h, "norm2"), context, heads)
        values, gate = b.linear(b.layer_norm(h, "norm3"), "ff.net.0.proj", 8 * width).chunk(2, dim=-1)
        h = h + b.linear(values * F.gelu(gate), "ff.net.2", width)
    return x + w.conv(h.transpose(1, 2).unflatten(2, (height, breadth)), "proj_out", width, 1)


def _attention(w: Weights, x: Tensor, context: Tensor, heads: int) -> Tensor:
    width = x.shape[-1]
    q, k, v = (
        w.linear(tokens, f"to_{name}", width, bias=False).unflatten(-1, (heads, width // heads)).transpose(1, 2)
        for name, tokens in (("q", x), ("k", context), ("v", context))
    )
    shares = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(dim=-1)
    return w.linear((shares @ v).transpose(1, 2).flatten(2), "to_out.0", width)


def encode(state: Any, found: Config, image: Tensor, make: Make | None = None) -> Tensor:
    """The latents of images (B, 3, H, W) in -1..1, before quantisation."""
    own = found["model"]["params"]["first_stage_config"]["params"]
    dd, top = own["ddconfig"], Weights(state, "first_stage_model.", make)
    w, size = top.under("encoder"), dd["resolution"]
    h = w.conv(image, "conv_in", dd["ch"])
    for level, mult in enumerate(dd["ch_mult"]):
        for i in range(dd["num_res_blocks"]):
            h = _resnet(w.under(f"down.{level}.block.{i}"), h, mult * dd["ch"])
            h = _pixels(w.under(f"down.{level}.attn.{i}"), h) if size in dd["attn_resolutions"] else h
        if level != len(dd["ch_mult"]) - 1:
            padded = F.pad(h, (0, 1, 0, 1))
            h, size = w.conv(padded, f"down.{level}.downsample.conv", h.shape[1], stride=2, padding=0), size // 2
    h = w.conv(F.silu(w.group_norm(_middle(w, h), "norm_out", 1e-6)), "conv_out", dd["z_channels"])
    return top.conv(h, "quant_conv", own["embed_dim"], 1)


def quantised(state: Any, found: Config, latents: Tensor, make: Make | None = None) -> Tensor:
    """The codes that are nearest to the latents."""
    own = found["model"]["params"]["first_stage_config"]["params"]
    top = Weights(state, "first_stage_model.", make)
    codes = top.get("quantize.embedding.weight", own["n_embed"], own["embed_dim"])
    distances = (latents.movedim(1, -1)[..., None, :] - codes).square().sum(-1)  # (B, H, W, codes)
    return codes[distances.argmin(-1)].movedim(-1, 1)


def decode(state: Any, found: Config, latents: Tensor, make: Make | None = None) -> Tensor:
    """The images in -1..1 of latents (B, C, H, W), through the codebook."""
    dd = found["model"]["params"]["first_stage_config"]["params"]["ddconfig"]
    top = Weights(state, "first_stage_model.", make)
    w, size = top.under("decoder"), dd["resolution"] // 2 ** (len(dd["ch_mult"]) - 1)
    h = top.conv(quantised(state, found, latents, make), "post_quant_conv", dd["z_channels"], 1)
    h = _middle(w, w.conv(h, "conv_in", dd["ch_mult"][-1] * dd["ch"]))
    for level, mult in reversed(list(enumerate(dd["ch_mult"]))):
        for i in range(dd["num_res_blocks"] + 1):
            h = _resnet(w.under(f"up.{level}.block.{i}"), h, mult * dd["ch"])
            h = _pixels(w.under(f"up.{level}.attn.{i}"), h) if size in dd["attn_resolutions"] else h
        if level:
            h, size = w.conv(F.interpolate(h, scale_factor=2), f"up.{level}.upsample.conv", h.shape[1]), size * 2
    return w.conv(F.silu(w.group_norm(h, "norm_out", 1e-6)), "conv_out", dd["out_ch"])


def _middle(w: Weights, h: Tensor) -> Tensor:
    h = _resnet(w.under("mid.block_1"), h, h.shape[1])
    return _resnet(w.under("mid.block_2"), _pixels(w.under("mid.attn_1"), h), h.shape[1])


def _resnet(w: Weights, x: Tensor, out: int) -> Tensor:
    h = w.conv(F.silu(w.group_norm(x, "norm1", 1e-6)), "conv1", out)
    h = w.conv(F.silu(w.group_norm(h, "norm2", 1e-6)), "conv2", out)
    return h + (x if x.shape[1] == out else w.conv(x, "nin_shortcut", out, 1))


def _pixels(w: Weights, x: Tensor) -> Tensor:
    """Attention among pixels, with one head."""
    normed = w.group_norm(x, "norm", 1e-6)
    q, k, v = (w.conv(normed, name, x.shape[1], 1).flatten(2) for name in "qkv")  # (B, C, HW)
    shares = (q.transpose(1, 2) @ k / x.shape[1] ** 0.5).softmax(dim=-1)
    return x + w.conv((v @ shares.transpose(1, 2)).unflatten(2, x.shape[2:]), "proj_out", x.shape[1], 1)

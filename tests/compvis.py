"""CompVis' latent diffusion in plain torch, written for the tests: where its weights stand, and what they compute.

`Weights` makes a weight when it is first asked for, so that one evaluation lays a checkpoint out. Independent of
diffusers and of the loader.

References: High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Config = dict[str, Any]
Make = Callable[[str, Sequence[int]], Tensor]

UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [4, 2],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 3],
    "num_heads": 1,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 24,
}
AUTOENCODER = {  # attention at the innermost resolution, and codes of another width than the latents
    "double_z": False,
    "z_channels": 3,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.0,
}


def config(unet: Config | None = None, autoencoder: Config | None = None, **params: Any) -> Config:
    """A YAML's contents: cin256-v2's layout, tiny; with changes."""
    home = "ldm.models"
    return {
        "model": {
            "target": f"{home}.diffusion.ddpm.LatentDiffusion",
            "params": {
                "linear_start": 0.0015,
                "linear_end": 0.0195,
                "timesteps": 1000,
                "image_size": 8,
                "conditioning_key": "crossattn",
                "use_ema": False,
                "unet_config": {
                    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                    "params": {**UNET, **(unet or {})},
                },
                "first_stage_config": {
                    "target": f"{home}.autoencoder.VQModelInterface",
                    "params": {"embed_dim": 4, "n_embed": 32, "ddconfig": {**AUTOENCODER, **(autoencoder or {})}},
                },
                "cond_stage_config": {
                    "target": "ldm.modules.encoders.modules.ClassEmbedder",
                    "params": {"n_classes": 11, "embed_dim": 24, "key": "class_label"},
                },
                **params,
            },
        }
    }


class Weights:
    """Weights under a prefix of a checkpoint's `state_dict`, made on demand where there is a way to."""

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


def noise(seed: int = 0) -> Make:
    """Weights scaled by their fan-in, norms about 1, and attention that is far from uniform."""
    generator = torch.Generator().manual_seed(seed)

    def make(name: str, shape: Sequence[int]) -> Tensor:
        drawn = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            return 0.2 * drawn + float(name.endswith("weight"))
        gain = 2 if re.search(r"\.(to_q|to_k|q|k)\.weight", name) else 1
        return gain * drawn / drawn[0].numel() ** 0.5

    return make


def layout(found: Config, make: Make) -> dict[str, Tensor]:
    """A `state_dict`: evaluating everything once makes all weights."""
    state: dict[str, Tensor] = {}
    params = found["model"]["params"]
    size, dd = params["image_size"], params["first_stage_config"]["params"]["ddconfig"]
    context = classes(state, found, torch.zeros(1, dtype=torch.long), make)
    latents = torch.zeros(1, params["unet_config"]["params"]["in_channels"], size, size)
    unet(state, found, latents, torch.zeros(1), context, make)
    encode(state, found, torch.zeros(1, dd["in_channels"], dd["resolution"], dd["resolution"]), make)
    decode(state, found, latents, make)
    return state


def checkpoint(found: Config, seed: int = 0) -> dict[str, Tensor]:
    """A `state_dict` of random weights, and the noise schedule that CompVis keeps beside them."""
    params = found["model"]["params"]
    betas = torch.linspace(params["linear_start"] ** 0.5, params["linear_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    schedule = {"betas": betas.float(), "alphas_cumprod": (1 - betas).cumprod(0).float()}
    return {**layout(found, noise(seed)), **schedule}


def written(folder: Path, found: Config, state: dict[str, Tensor], **more: Any) -> tuple[Path, Path]:
    """As a checkpoint and its YAML."""
    torch.save({"state_dict": state, "global_step": 7, **more}, folder / "model.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(found))
    return folder / "model.ckpt", folder / "config.yaml"


def classes(state: Any, found: Config, labels: Tensor, make: Make | None = None) -> Tensor:
    """(B,) labels to (B, 1, embed_dim) contexts."""
    own = found["model"]["params"]["cond_stage_config"]["params"]
    table = Weights(state, "cond_stage_model.", make).get("embedding.weight", own["n_classes"], own["embed_dim"])
    return table[labels][:, None]


def unet(state: Any, found: Config, x: Tensor, t: Tensor, context: Tensor, make: Make | None = None) -> Tensor:
    """(B, C, H, W) latents, (B,) timesteps and (B, 1, D) contexts to the predicted noise."""
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
    """(B, 3, H, W) images in -1..1 to latents, which are not quantised yet."""
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
    """The nearest codes."""
    own = found["model"]["params"]["first_stage_config"]["params"]
    top = Weights(state, "first_stage_model.", make)
    codes = top.get("quantize.embedding.weight", own["n_embed"], own["embed_dim"])
    distances = (latents.movedim(1, -1)[..., None, :] - codes).square().sum(-1)  # (B, H, W, codes)
    return codes[distances.argmin(-1)].movedim(-1, 1)


def decode(state: Any, found: Config, latents: Tensor, make: Make | None = None) -> Tensor:
    """(B, C, H, W) latents through the codebook to images in -1..1."""
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
    """Attention among pixels, one head."""
    normed = w.group_norm(x, "norm", 1e-6)
    q, k, v = (w.conv(normed, name, x.shape[1], 1).flatten(2) for name in "qkv")  # (B, C, HW)
    shares = (q.transpose(1, 2) @ k / x.shape[1] ** 0.5).softmax(dim=-1)
    return x + w.conv((v @ shares.transpose(1, 2)).unflatten(2, x.shape[2:]), "proj_out", x.shape[1], 1)


def sampled(
    state: Any, found: Config, labels: Tensor, latents: Tensor, num_steps: int, scale: float, unconditional: int
) -> Tensor:
    """CompVis' DDIM at eta 0 with classifier-free guidance: (B,) labels and start noise to latents."""
    alphas = state["alphas_cumprod"]
    steps = torch.arange(0, 1000, 1000 // num_steps) + 1
    before = torch.cat([alphas[:1], alphas[steps[:-1]]])
    nothing = classes(state, found, torch.full_like(labels, unconditional))
    contexts = classes(state, found, labels)
    for t, alpha, alpha_before in reversed(list(zip(steps, alphas[steps], before, strict=True))):
        ts = t.expand(len(labels))
        without, conditional = (unet(state, found, latents, ts, context) for context in (nothing, contexts))
        noise = without + scale * (conditional - without)
        clean = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        latents = alpha_before.sqrt() * clean + (1 - alpha_before).sqrt() * noise
    return latents

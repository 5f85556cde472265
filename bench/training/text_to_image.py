"""mini-sd: Stable Diffusion's parts, small: an f4 KL autoencoder, a text encoder, a text-conditional U-Net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel, VQModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import mse_loss
from transformers import CLIPTextConfig, CLIPTextModel

from bench.training.diffusion import diffusion_loss
from bench.training.tokens import LENGTH, table, tokenizer
from bench.training.trainer import Recipe, kept, seeded, train
from deepcache.models import captions, fashion

AUTOENCODER_BATCH = 32
AUTOENCODER = Recipe(num_steps=1_600, lr=5e-4, warmup=50)
KL_WEIGHT = 1e-5
BATCH = 96
RECIPE = Recipe(num_steps=4_200, lr=1.2e-3)
UNCONDITIONAL = 0.1  # share of captions dropped, for guidance
PAINTINGS = 2  # colourings of every garment that are stored
CONTEXT = 96
LOG_VARIANCE = -6.0  # of the latents, at the start


def build_unet(**changes: Any) -> UNet2DConditionModel:
    """The untrained network: Stable Diffusion's arrangement with three levels and nine skips."""
    config = {
        "sample_size": 8,
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "cross_attention_dim": CONTEXT,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**config, **changes})


def build_text_encoder() -> CLIPTextModel:
    """Two causal layers over at most 16 tokens."""
    tokens = tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=CONTEXT,
            intermediate_size=4 * CONTEXT,
            projection_dim=CONTEXT,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )


def scheduler() -> PNDMScheduler:
    """PLMS, as Stable Diffusion samples; LDM-4-G's noise schedule, which leaves no trace of so small a latent."""
    return PNDMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        set_alpha_to_one=False,
    )


class TextDenoiser(nn.Module):
    """The U-Net and its text encoder, which train together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(noisy, timestep, self.text_encoder(tokens)[0]).sample  # type: ignore[no-any-return]


def train_autoencoder(data: fashion.Garments, vqvae: VQModel, folder: Path) -> AutoencoderKL:
    """From mini-ldm's autoencoder: the codebook goes, a variance comes; its scaling factor makes latents unit size."""

    def loss(model: AutoencoderKL, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(data.grey), (AUTOENCODER_BATCH,), generator=generator)
        images = fashion.paint(data.pick(chosen), seed=step).images
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(images).latent_dist
            decoded = model.decode(latents.sample(generator)).sample
        divergence: Tensor = latents.kl().mean()
        return mse_loss(decoded.float(), images) + KL_WEIGHT * divergence

    with seeded():
        model = train(_continuous(vqvae), loss, AUTOENCODER, folder / "autoencoder")
    model.register_to_config(
        scaling_factor=1 / encode(model, fashion.paint(data.pick(slice(2_000)), seed=0)).std().item()
    )
    return model


def _continuous(vqvae: VQModel) -> AutoencoderKL:
    """An autoencoder that begins as `vqvae` without its codebook, with a small constant variance."""
    config = {key: vqvae.config[key] for key in ("down_block_types", "up_block_types", "block_out_channels")}
    model = AutoencoderKL(**config, latent_channels=4, norm_num_groups=vqvae.config.norm_num_groups, sample_size=32)
    start = model.state_dict()
    for name, value in vqvae.state_dict().items():
        if name in start and start[name].shape == value.shape:
            start[name] = value
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        start[name] = torch.cat([vqvae.state_dict()[name]] * 2)
    weight, bias = vqvae.quant_conv.weight, vqvae.quant_conv.bias
    start["quant_conv.weight"] = torch.zeros_like(start["quant_conv.weight"])
    start["quant_conv.weight"][:4, :4] = weight.detach()
    start["quant_conv.bias"] = torch.cat([bias.detach(), torch.full_like(bias, LOG_VARIANCE)])
    model.load_state_dict(start)
    return model


@torch.no_grad()
def encode(model: AutoencoderKL, painted: fashion.Painted, *, batch: int = 250) -> Tensor:
    """Means of the latents, (B, 4, 8, 8), not scaled."""
    means: Tensor = torch.cat([model.encode(images).latent_dist.mean for images in painted.images.split(batch)])
    return means


class Captioned:
    """Latents and tokens of the training images, and the loss on a batch of them."""

    def __init__(self, data: fashion.Garments, vae: AutoencoderKL, folder: Path) -> None:
        self.latents, labels = kept(folder / "latents.pt", lambda: _latents(data, vae))
        self.latents = self.latents.float() * vae.config.scaling_factor
        self.caption = captions.numbers_of(captions.Subject(*row) for row in labels.tolist())
        self.tokens = table([*map(str, captions.subjects()), captions.EMPTY])  # the empty prompt is last
        self.schedule = scheduler()

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """Of what `model` predicts, on the batch that belongs to `step`."""
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(self.latents), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < UNCONDITIONAL
        tokens = self.tokens[self.caption[chosen].masked_fill(dropped, len(self.tokens) - 1)]
        clean = self.latents[chosen]
        # torch's fused attention is slow backwards on a CPU for heads this narrow
        with sdpa_kernel(SDPBackend.MATH):
            return diffusion_loss(lambda noisy, t: model(noisy, t, tokens), self.schedule, clean, generator)


def _latents(data: fashion.Garments, vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    latents, labels = [], []
    for number in range(PAINTINGS):
        painted = fashion.paint(data, seed=2 + number)
        latents.append(encode(vae, painted).half())
        labels.append(torch.stack([painted.garment, painted.colour, painted.background], dim=1))
    return torch.cat(latents), torch.cat(labels)


def train_text_to_image(data: Captioned, folder: Path) -> TextDenoiser:
    """The U-Net and the text encoder, from nothing; resumes from `folder`."""
    with seeded():
        return train(TextDenoiser(build_unet(), build_text_encoder()), data.loss, RECIPE, folder / "denoiser")

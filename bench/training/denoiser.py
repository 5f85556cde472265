"""mini-ldm's U-Net, trained on stored latents to predict the noise (Ho et al., 2020, https://arxiv.org/abs/2006.11239)."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, VQModel
from torch import Tensor, nn

from bench.training import autoencoder
from bench.training.diffusion import diffusion_loss
from bench.training.trainer import Recipe, kept, seeded, train
from deepcache.models import fashion
from deepcache.models.class_conditional import ClassEmbedder

BATCH = 96
RECIPE = Recipe(num_steps=12_000, lr=8e-4)  # 1.15 M latents seen
UNCONDITIONAL = 0.1  # share of labels dropped, for guidance
PAINTINGS = 2  # colourings of every garment that are stored
NUM_CLASSES = len(fashion.GARMENTS)
CONTEXT = 64


class ConditionalDenoiser(nn.Module):
    """The U-Net and its class embedding, which train together."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder = ClassEmbedder(NUM_CLASSES, CONTEXT)
        self.unet = build()

    def forward(self, noisy: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        return self.unet(noisy, timestep, self.embedder(labels)).sample  # type: ignore[no-any-return]


def build() -> UNet2DConditionModel:
    """The untrained network: LDM-4-G's arrangement with three levels and nine skips, 4.5 M parameters."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 80, 80),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(4, 5, 5),
        cross_attention_dim=CONTEXT,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """LDM-4-G's noise schedule, sampled by DDIM."""
    return DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )


def train_denoiser(data: fashion.Garments, vqvae: VQModel, folder: Path) -> ConditionalDenoiser:
    """Train on the latents of `data`; resumes from `folder`."""
    latents, labels = _latents(data, vqvae, folder)
    noise_schedule = scheduler()

    def loss(model: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(latents), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < UNCONDITIONAL
        clean = latents[chosen].float()
        label = labels[chosen].masked_fill(dropped, NUM_CLASSES)
        return diffusion_loss(lambda noisy, t: model(noisy, t, label), noise_schedule, clean, generator)

    with seeded():
        return train(ConditionalDenoiser(), loss, RECIPE, folder / "denoiser")


def _latents(data: fashion.Garments, vqvae: VQModel, folder: Path) -> tuple[Tensor, Tensor]:
    """Latents before quantisation, (N, 4, 8, 8) fp16, and labels, kept in `folder` between runs."""

    def make() -> tuple[Tensor, Tensor]:
        images = torch.cat([fashion.paint(data, seed=2 + i).images for i in range(PAINTINGS)])
        return autoencoder.encode(vqvae, images).half(), data.garment.repeat(PAINTINGS)

    latents, labels = kept(folder / "latents.pt", make)
    return latents, labels

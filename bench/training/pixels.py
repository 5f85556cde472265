"""mini-ddpm: an unconditional U-Net on pixels (Ho et al., 2020, https://arxiv.org/abs/2006.11239)."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.training.diffusion import diffusion_loss
from bench.training.trainer import Recipe, seeded, train
from deepcache.models import fashion

BATCH = 64
RECIPE = Recipe(num_steps=4_000, lr=1.5e-3)


def build() -> UNet2DModel:
    """The untrained network: DDPM's arrangement with four levels and twelve skips, attention at 8 x 8."""
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        norm_num_groups=8,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )


def scheduler() -> DDIMScheduler:
    """DDPM's noise schedule, sampled by DDIM, which does not clip.

    The network gives the velocity (Salimans and Ho, 2022, https://arxiv.org/abs/2202.00512): a small network that gives
    the noise leaves speckles, because at high noise its errors grow in the image it stands for.
    """
    return DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False, prediction_type="v_prediction"
    )


def train_pixels(data: fashion.Garments, folder: Path) -> UNet2DModel:
    """Train on `data`, painted anew each time; resumes from `folder`."""
    noise_schedule = scheduler()

    def loss(model: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(data.grey), (BATCH,), generator=generator)
        images = fashion.paint(data.pick(chosen), seed=step).images
        with sdpa_kernel(SDPBackend.MATH):
            return diffusion_loss(lambda noisy, t: model(noisy, t).sample, noise_schedule, images, generator)

    with seeded():
        return train(build(), loss, RECIPE, folder / "denoiser")

"""mini-ddpm: an unconditional U-Net on pixels (Ho et al., 2020, https://arxiv.org/abs/2006.11239)."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import mse_loss

from deepcache.models import fashion
from deepcache.models.train.trainer import Recipe, train

BATCH = 64
RECIPE = Recipe(num_steps=3_600, lr=1.5e-3)


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
    """DDPM's noise schedule, sampled by DDIM."""
    return DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=True)


def train_pixels(data: fashion.Garments, folder: Path) -> UNet2DModel:
    """Train on `data`, painted anew each time; resumes from `folder`."""
    noise_schedule = scheduler()

    def loss(model: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(data.grey), (BATCH,), generator=generator)
        images = fashion.paint(data.pick(chosen), seed=step).images
        noise = torch.randn(images.shape, generator=generator)
        t = torch.randint(1000, (BATCH,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            predicted = model(noise_schedule.add_noise(images, noise, t), t).sample
        return mse_loss(predicted.float(), noise)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return train(build(), loss, RECIPE, folder / "denoiser")

"""mini-ddpm: an unconditional U-Net on pixels (Ho et al., 2020, https://arxiv.org/abs/2006.11239)."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.training import fashion
from bench.training.cards import DATA, Card, Picture, num_parameters, tiles, trained
from bench.training.trainer import Recipe, diffusion_loss, seeded, train
from deepcache.metrics import reference
from deepcache.metrics.extractors import MiniExtractor, extract
from deepcache.metrics.fidelity import quality
from deepcache.metrics.statistics import Statistics
from deepcache.models import load
from deepcache.sampling.samples import sample

BATCH = 64
RECIPE = Recipe(num_steps=4_000, lr=1.5e-3)
NUM_SAMPLES, NUM_STEPS = 150, 100  # the card shows and scores these samples


def build() -> UNet2DModel:
    """Return the untrained network: DDPM's arrangement with four levels and twelve skips, attention at 8 x 8."""
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
    """Return DDPM's noise schedule, sampled by DDIM without clipping.

    The network predicts the velocity (Salimans and Ho, 2022, https://arxiv.org/abs/2202.00512): a small network that
    predicts the noise leaves speckles, because at high noise its errors grow in the image that the noise stands for.
    """
    return DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False, prediction_type="v_prediction"
    )


def train_pixels(data: fashion.Garments, folder: Path) -> UNet2DModel:
    """Train on `data`, painted anew at each step; resumes from `folder`."""
    noise_schedule = scheduler()

    def loss(model: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        images = fashion.drawn(data, BATCH, step, generator).images
        with sdpa_kernel(SDPBackend.MATH):
            return diffusion_loss(lambda noisy, t: model(noisy, t).sample, noise_schedule, images, generator)

    with seeded():
        return train(build(), loss, RECIPE, folder / "denoiser")


def export(unet: UNet2DModel, out: Path) -> None:
    """Write the pipeline as the package ships it."""
    pipe = DDPMPipeline(unet, scheduler())
    pipe.to(torch.float16).save_pretrained(out, variant="fp16", safe_serialization=True)


def card(_held_out: fashion.Painted, runs: Path) -> Card:
    """Return the card of mini-ddpm as it is shipped."""
    history = trained("U-Net", runs / "mini-ddpm" / "denoiser", BATCH)
    pipe = load("mini-ddpm")
    images = sample(pipe, range(NUM_SAMPLES), batch_size=50, num_inference_steps=NUM_STEPS)
    about = f"""Unconditional diffusion in pixel space: a U-Net ({num_parameters(pipe.unet)} parameters, four levels,
twelve skips, attention at 8 x 8) on 32 x 32 images. It has DDPM's arrangement and noise schedule, and stands for DDPM
on CIFAR-10 and LSUN."""
    return Card(
        name="mini-ddpm",
        about=about,
        facts=(DATA, "made by `python -m bench.training mini-ddpm`", history),
        measured=f"Of {NUM_SAMPLES:,} uncached samples (DDIM {NUM_STEPS} steps), measured with mini-features against "
        "the 10,000 held-out images:",
        scores=quality(Statistics.of([extract(MiniExtractor.load(), images)]), reference.load()),
        picture=Picture(
            tiles(images[:100], columns=10),
            "100 samples of coloured garments",
            f"Seeds 0..{min(NUM_SAMPLES, 100) - 1}, not chosen, DDIM {NUM_STEPS} steps.",
        ),
    )

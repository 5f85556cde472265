"""The VQ f4 autoencoder of mini-ldm: 3 x 32 x 32 images to 4 x 8 x 8 latents and back.

It trains as a plain autoencoder first; then k-means on its latents gives the codebook, so that every code is
in use from the start, and it trains on with quantisation (van den Oord et al., 2017,
https://arxiv.org/abs/1711.00937).
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import VQModel
from scipy.cluster.vq import kmeans2
from torch import Tensor
from torch.nn.functional import mse_loss
from tqdm import tqdm

from bench.training.trainer import Recipe, seeded, train
from deepcache.metrics import distances
from deepcache.models import fashion

BATCH = 32
PLAIN = Recipe(num_steps=2_500, lr=2e-3)
QUANTIZED = Recipe(num_steps=4_500, lr=1e-3)  # 27 dB PSNR on held-out images


def build() -> VQModel:
    """The untrained network: 0.96 M parameters, 2,048 codes of 4 numbers, quartering each side."""
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        latent_channels=4,
        num_vq_embeddings=2048,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=1.0,
    )


def train_autoencoder(data: fashion.Garments, folder: Path) -> VQModel:
    """Both trainings and the normalisation of the latents; resumes from `folder`."""

    def images(step: int) -> Tensor:
        chosen = torch.randint(len(data.grey), (BATCH,), generator=torch.Generator().manual_seed(step))
        return fashion.paint(data.pick(chosen), seed=step).images

    def loss(model: VQModel, step: int, *, quantize: bool) -> Tensor:
        x = images(step)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(x).latents
        commitment = torch.zeros(())
        if quantize:
            latents, commitment, _ = model.quantize(latents.float())
        with torch.autocast("cpu", torch.bfloat16):
            decoded = model.decode(latents, force_not_quantize=True).sample
        return mse_loss(decoded.float(), x) + 0.25 * commitment

    with seeded():
        plain = train(build(), lambda model, step: loss(model, step, quantize=False), PLAIN, folder / "plain")
        if not (folder / "quantized" / "state.pt").exists():
            _codebook_from_latents(plain, data)
        start = PLAIN.num_steps
        model = train(
            plain.requires_grad_(requires_grad=True),
            lambda model, step: loss(model, start + step, quantize=True),
            QUANTIZED,
            folder / "quantized",
        )
    _normalise(model, data)
    return model


@torch.no_grad()
def encode(model: VQModel, images: Tensor, *, batch: int = 256) -> Tensor:
    """Latents before quantisation, (B, 4, 8, 8), with a progress bar for the long runs."""
    chunks = images.split(batch)
    return torch.cat([model.encode(x).latents for x in tqdm(chunks, desc="encode", disable=len(chunks) < 20)])


@torch.no_grad()
def decode(model: VQModel, latents: Tensor, *, batch: int = 256) -> Tensor:
    """Images (B, 3, 32, 32) in -1..1 from latents, through the codebook."""
    chunks = latents.split(batch)
    return torch.cat([model.decode(z).sample for z in tqdm(chunks, desc="decode", disable=len(chunks) < 20)])


def _sample_latents(model: VQModel, data: fashion.Garments, count: int = 2_000) -> Tensor:
    images = fashion.paint(data.pick(slice(count)), seed=0).images
    return encode(model, images)


def _codebook_from_latents(model: VQModel, data: fashion.Garments) -> None:
    vectors = _sample_latents(model, data).permute(0, 2, 3, 1).reshape(-1, 4)
    codes, _ = kmeans2(vectors.numpy(), model.config.num_vq_embeddings, iter=20, minit="points", seed=0)
    model.quantize.embedding.weight.data.copy_(torch.from_numpy(codes))


@torch.no_grad()
def _normalise(model: VQModel, data: fashion.Garments) -> None:
    """Move the latents to mean 0 a channel and standard deviation 1 over all, which changes no image.

    One scale for all channels keeps the nearest code the nearest.
    """
    latents = _sample_latents(model, data)
    mean, scale = latents.mean(dim=(0, 2, 3)), latents.std()
    model.quant_conv.weight /= scale
    model.quant_conv.bias.copy_((model.quant_conv.bias - mean) / scale)
    model.quantize.embedding.weight.copy_((model.quantize.embedding.weight - mean) / scale)
    model.post_quant_conv.bias += model.post_quant_conv.weight[:, :, 0, 0] @ mean
    model.post_quant_conv.weight *= scale


def psnr(model: VQModel, images: Tensor) -> float:
    """Of the reconstructions, in dB, from the mean squared error over all images."""
    error = mse_loss(decode(model, encode(model, images)).clamp(-1, 1), images).item()
    return distances.psnr(error, peak=2)

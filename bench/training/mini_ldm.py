"""mini-ldm: a VQ f4 autoencoder (3 x 32 x 32 images to 4 x 8 x 8 latents) and a class-conditional U-Net on its latents.

The autoencoder trains without a codebook first; then k-means on its latents gives the codebook, so that every code is
in use from the start, and the autoencoder trains on with quantisation (van den Oord et al., 2017,
https://arxiv.org/abs/1711.00937). The U-Net trains on stored latents to predict the noise (Ho et al., 2020,
https://arxiv.org/abs/2006.11239).
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, VQModel
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm import tqdm

from bench.training import fashion
from bench.training.cards import DATA, Card, Picture, num_parameters, tiles, trained
from bench.training.trainer import Recipe, diffusion_loss, kept, seeded, train
from deepcache.metrics import distances, reference
from deepcache.metrics.extractors import MiniExtractor, extract
from deepcache.metrics.fidelity import as_asked, quality
from deepcache.metrics.statistics import Statistics
from deepcache.models import load
from deepcache.models.captions import GARMENTS
from deepcache.models.class_conditional import ClassConditionalPipeline, ClassEmbedder
from deepcache.sampling.conditions import labels_of
from deepcache.sampling.samples import sample

AUTOENCODER_BATCH = 32
PLAIN = Recipe(num_steps=2_500, lr=2e-3)
QUANTIZED = Recipe(num_steps=4_500, lr=1e-3)  # 27 dB PSNR on held-out images
BATCH = 96
RECIPE = Recipe(num_steps=12_000, lr=8e-4)  # 1.15 M latents seen
UNCONDITIONAL = 0.1  # share of labels that are dropped, for guidance
PAINTINGS = 2  # stored colourings of every garment
NUM_CLASSES = len(GARMENTS)
CONTEXT = 64
NUM_SAMPLES, NUM_STEPS, GUIDANCE = 1_000, 100, 1.5  # the card shows and scores these samples


def build_autoencoder() -> VQModel:
    """Return the untrained autoencoder: 0.96 M parameters, 2,048 codes of 4 numbers."""
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
    """Train the autoencoder without and with its codebook, and normalise the latents; resumes from `folder`."""

    def loss(model: VQModel, step: int, *, quantize: bool) -> Tensor:
        x = fashion.drawn(data, AUTOENCODER_BATCH, step, torch.Generator().manual_seed(step)).images
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(x).latents
        commitment = torch.zeros(())
        if quantize:
            latents, commitment, _ = model.quantize(latents.float())
        with torch.autocast("cpu", torch.bfloat16):
            decoded = model.decode(latents, force_not_quantize=True).sample
        return mse_loss(decoded.float(), x) + 0.25 * commitment

    with seeded():
        plain = train(
            build_autoencoder(), lambda model, step: loss(model, step, quantize=False), PLAIN, folder / "plain"
        )
        if not (folder / "quantized" / "state.pt").exists():
            codebook_from_latents(plain, data)
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
    """Return latents (B, 4, 8, 8) of images, before quantisation."""
    chunks = images.split(batch)
    return torch.cat([model.encode(x).latents for x in tqdm(chunks, desc="encode", disable=len(chunks) < 20)])


@torch.no_grad()
def decode(model: VQModel, latents: Tensor, *, batch: int = 256) -> Tensor:
    """Return images (B, 3, 32, 32) in -1..1 of latents, through the codebook."""
    chunks = latents.split(batch)
    return torch.cat([model.decode(z).sample for z in tqdm(chunks, desc="decode", disable=len(chunks) < 20)])


def psnr(model: VQModel, images: Tensor) -> float:
    """Return the PSNR of the reconstructions, in dB, from the mean squared error over all images."""
    error = mse_loss(decode(model, encode(model, images)).clamp(-1, 1), images).item()
    return distances.psnr(error, peak=2)


def _sample_latents(model: VQModel, data: fashion.Garments, count: int = 2_000) -> Tensor:
    images = fashion.paint(data.pick(slice(count)), seed=0).images
    return encode(model, images)


def codebook_from_latents(model: VQModel, data: fashion.Garments) -> None:
    """Take the centres of clusters of latents for the codebook."""
    vectors = _sample_latents(model, data).permute(0, 2, 3, 1).reshape(-1, 4)
    codes, _ = kmeans2(vectors.numpy(), model.config.num_vq_embeddings, iter=20, minit="points", seed=0)
    model.quantize.embedding.weight.data.copy_(torch.from_numpy(codes))


@torch.no_grad()
def _normalise(model: VQModel, data: fashion.Garments) -> None:
    """Give every channel of the latents mean 0, and all together standard deviation 1, without changing any image.

    All channels share one scale, so that the nearest code stays the nearest.
    """
    latents = _sample_latents(model, data)
    mean, scale = latents.mean(dim=(0, 2, 3)), latents.std()
    model.quant_conv.weight /= scale
    model.quant_conv.bias.copy_((model.quant_conv.bias - mean) / scale)
    model.quantize.embedding.weight.copy_((model.quantize.embedding.weight - mean) / scale)
    model.post_quant_conv.bias += model.post_quant_conv.weight[:, :, 0, 0] @ mean
    model.post_quant_conv.weight *= scale


class Denoiser(nn.Module):
    """The U-Net and its class embedding, which train together."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder = ClassEmbedder(NUM_CLASSES, CONTEXT)
        self.unet = build_unet()

    def forward(self, noisy: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        return self.unet(noisy, timestep, self.embedder(labels)).sample


def build_unet() -> UNet2DConditionModel:
    """Return the untrained U-Net: LDM-4-G's arrangement with three levels and nine skips, 4.5 M parameters."""
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
    """Return LDM-4-G's noise schedule, sampled by DDIM."""
    return DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )


def train_denoiser(data: fashion.Garments, vqvae: VQModel, folder: Path) -> Denoiser:
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
        return train(Denoiser(), loss, RECIPE, folder / "denoiser")


def _latents(data: fashion.Garments, vqvae: VQModel, folder: Path) -> tuple[Tensor, Tensor]:
    """Return latents before quantisation, (N, 4, 8, 8) fp16, and labels (N,), kept in `folder` between runs."""

    def make() -> tuple[Tensor, Tensor]:
        images = torch.cat([fashion.paint(data, seed=2 + i).images for i in range(PAINTINGS)])
        return encode(vqvae, images).half(), data.garment.repeat(PAINTINGS)

    latents, labels = kept(folder / "latents.pt", make)
    return latents, labels


def export(vqvae: VQModel, denoiser: Denoiser, out: Path) -> None:
    """Write the pipeline as the package ships it."""
    pipe = ClassConditionalPipeline(vqvae, denoiser.unet, denoiser.embedder, scheduler())
    pipe.to(torch.float16).save_pretrained(out, variant="fp16", safe_serialization=True)


def card(held_out: fashion.Painted, runs: Path) -> Card:
    """Return the card of mini-ldm as it is shipped."""
    run = runs / "mini-ldm"
    facts = (
        DATA,
        "made by `python -m bench.training mini-ldm`",
        trained("autoencoder", run / "plain", AUTOENCODER_BATCH),
        trained("autoencoder with its codebook", run / "quantized", AUTOENCODER_BATCH),
        trained("U-Net", run / "denoiser", BATCH),
    )
    pipe, seeds = load("mini-ldm"), range(NUM_SAMPLES)
    images = sample(pipe, seeds, batch_size=50, num_inference_steps=NUM_STEPS, guidance_scale=GUIDANCE)
    features = extract(MiniExtractor.load(), images)
    about = f"""Class-conditional latent diffusion: a VQ f4 autoencoder ({num_parameters(pipe.vqvae)} parameters,
32 x 32 images to 4 x 8 x 8 latents, {pipe.vqvae.config.num_vq_embeddings:,} codes) and a U-Net
({num_parameters(pipe.unet)} parameters, nine skips) with the class as cross-attention context, trained with
{UNCONDITIONAL:.0%} of the classes dropped. It has LDM-4-G's arrangement and noise schedule, and stands for
it."""
    return Card(
        name="mini-ldm",
        about=about,
        facts=facts,
        measured=f"Of {NUM_SAMPLES:,} uncached samples (DDIM {NUM_STEPS} steps, guidance {GUIDANCE}), "
        "measured with mini-features:",
        scores={
            "autoencoder_psnr_db": psnr(pipe.vqvae, held_out.images),
            "samples_as_asked": as_asked(features, labels_of(seeds, NUM_CLASSES)),
            **quality(Statistics.of([features]), reference.load()),
        },
        picture=Picture(
            tiles(images[:100], columns=10),
            "100 samples, a garment a column",
            f"A garment a column ({', '.join(GARMENTS)}); seeds 0..99, DDIM {NUM_STEPS} steps, guidance {GUIDANCE}.",
        ),
    )

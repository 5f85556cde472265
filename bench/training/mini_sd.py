"""mini-sd: Stable Diffusion in small: an f4 KL autoencoder, a text encoder and a text-conditional U-Net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel, VQModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import mse_loss
from transformers import CLIPTextConfig, CLIPTextModel

from bench.training import fashion, prompted
from bench.training.cards import CAPTIONS, DATA, Card, markdown, num_parameters, trained
from bench.training.tokens import LENGTH, table, tokenizer
from bench.training.trainer import Recipe, diffusion_loss, kept, seeded, train
from deepcache.metrics.distances import psnr
from deepcache.models import captions, load

AUTOENCODER_BATCH = 32
AUTOENCODER = Recipe(num_steps=1_600, lr=5e-4, warmup=50)
KL_WEIGHT = 1e-5
BATCH = 96
RECIPE = Recipe(num_steps=4_200, lr=1.2e-3)
UNCONDITIONAL = 0.1  # share of captions that are dropped, for guidance
PAINTINGS = 2  # stored colourings of every garment
CONTEXT = 96
LOG_VARIANCE = -6.0  # variance of the latents before the training
NO_PROMPT = ""  # guidance steers away from this prompt
GUIDANCES = (3.0, 5.0, 7.5)  # the card has scores at each


def build_unet(**changes: Any) -> UNet2DConditionModel:
    """Return the untrained U-Net: Stable Diffusion's arrangement with three levels and nine skips, with changes."""
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
    """Return the untrained text encoder: two causal layers over at most 16 tokens."""
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
    """Return Stable Diffusion's solver, PLMS, with LDM-4-G's schedule, which leaves no trace of so small a latent."""
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
        return self.unet(noisy, timestep, self.text_encoder(tokens)[0]).sample


def train_autoencoder(data: fashion.Garments, vqvae: VQModel, folder: Path) -> AutoencoderKL:
    """Train on from mini-ldm's autoencoder, with a variance instead of the codebook; resumes from `folder`.

    The scaling factor of the result gives the latents standard deviation 1.
    """

    def loss(model: AutoencoderKL, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        images = fashion.drawn(data, AUTOENCODER_BATCH, step, generator).images
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(images).latent_dist
            decoded = model.decode(latents.sample(generator)).sample
        divergence: Tensor = latents.kl().mean()
        return mse_loss(decoded.float(), images) + KL_WEIGHT * divergence

    with seeded():
        model = train(continuous(vqvae), loss, AUTOENCODER, folder / "autoencoder")
    model.register_to_config(
        scaling_factor=1 / encode(model, fashion.paint(data.pick(slice(2_000)), seed=0)).std().item()
    )
    return model


def continuous(vqvae: VQModel) -> AutoencoderKL:
    """Return an autoencoder that equals `vqvae` without its codebook, with a small constant variance."""
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
    """Return the means (B, 4, 8, 8) of the latents of images, not scaled."""
    means: Tensor = torch.cat([model.encode(images).latent_dist.mean for images in painted.images.split(batch)])
    return means


class Captioned:
    """The latents and captions of the training images, and the loss on a batch of them."""

    def __init__(self, data: fashion.Garments, vae: AutoencoderKL, folder: Path) -> None:
        self.latents, labels = kept(folder / "latents.pt", lambda: _latents(data, vae))
        self.latents = self.latents.float() * vae.config.scaling_factor
        self.caption = fashion.numbers_of(captions.Subject(*row) for row in labels.tolist())
        self.tokens = table([*map(str, captions.subjects()), NO_PROMPT])  # the empty prompt is last
        self.schedule = scheduler()

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """Return the loss of `model` on the batch of a step."""
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(self.latents), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < UNCONDITIONAL
        tokens = self.tokens[self.caption[chosen].masked_fill(dropped, len(self.tokens) - 1)]
        clean = self.latents[chosen]
        # torch's fused attention has a slow backward pass on a CPU where heads are this narrow
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
    """Train the U-Net and the text encoder from nothing; resumes from `folder`."""
    with seeded():
        return train(TextDenoiser(build_unet(), build_text_encoder()), data.loss, RECIPE, folder / "denoiser")


def export(vae: AutoencoderKL, denoiser: TextDenoiser, out: Path) -> None:
    """Write the pipeline as the package ships it, in the form of Stable Diffusion's."""
    pipe = StableDiffusionPipeline(
        vae,
        denoiser.text_encoder,
        tokenizer(),
        denoiser.unet,
        scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(out, variant="fp16", safe_serialization=True)


def card(held_out: fashion.Painted, runs: Path) -> Card:
    """Return the card of mini-sd as it is shipped: samples and scores at each guidance, and the best guidance."""
    run = runs / "mini-sd"
    facts = (
        DATA,
        f"{CAPTIONS}; {UNCONDITIONAL:.0%} of them dropped in training, for guidance. Those of the scores below are "
        "among them: the seeds are new to the model, the captions are not",
        "made by `python -m bench.training mini-sd`",
        trained("autoencoder, from mini-ldm's without its codebook", run / "autoencoder", AUTOENCODER_BATCH),
        trained("U-Net and text encoder, from nothing", run / "denoiser", BATCH),
    )
    pipe = load("mini-sd")
    found = {guidance: prompted.prompted(pipe, guidance) for guidance in GUIDANCES}
    by_guidance = {guidance: samples.scores() for guidance, samples in found.items()}
    best = best_guidance(by_guidance)
    about = f"""Text-conditional latent diffusion in a `StableDiffusionPipeline`: a KL f4 autoencoder
({num_parameters(pipe.vae)} parameters, 32 x 32 images to 4 x 8 x 8 latents), a CLIP text encoder of two layers
({num_parameters(pipe.text_encoder)} parameters, prompts of at most {LENGTH} tokens) and a U-Net
({num_parameters(pipe.unet)} parameters, nine skips). It has Stable Diffusion's arrangement, and stands for version 1.5.
It knows the captions' words alone: say "{found[best].subjects[0]}"."""
    names = tuple(by_guidance[best])
    rows: list[tuple[Any, ...]] = [(f"{g:g}", *scores.values()) for g, scores in by_guidance.items()]
    return Card(
        name="mini-sd",
        about=about,
        facts=facts,
        measured=f"Of {prompted.NUM_SAMPLES} uncached samples (PLMS {prompted.NUM_STEPS} steps, guidance {best:g}), "
        "their contents by mini-features, the clip score by mini-clip:",
        scores={
            "guidance": best,
            **by_guidance[best],
            "autoencoder_psnr_db": autoencoder_psnr(pipe.vae, held_out.images),
            "by_guidance": {f"{g:g}": scores for g, scores in by_guidance.items()},
        },
        picture=found[best].picture("samples of mini-sd, each above its prompt", best),
        more=f"Guidance {best:g} has the most samples with garment, colour and background as asked for:\n\n"
        + markdown(("guidance", *(name.replace("_", " ") for name in names)), rows)
        + "\n\nThe benches take guidance 3 all the same: they compare cached with uncached samples of one guidance, "
        "for which the best score is not needed, and it keeps clear of 7.5, where so small a model paints too "
        "strongly.",
    )


def best_guidance(by_guidance: dict[float, dict[str, float]]) -> float:
    """Return the guidance with the most samples as asked for; among equals, the one with the highest CLIP score."""
    return max(by_guidance, key=lambda g: (by_guidance[g]["all_as_asked"], by_guidance[g]["clip_score"]))


@torch.no_grad()
def autoencoder_psnr(vae: Any, images: Tensor, *, batch: int = 250) -> float:
    """Return the PSNR of the reconstructions of images in -1..1, in dB, from the mean squared error over all images."""
    decoded = [vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1) for x in images.split(batch)]
    return psnr(mse_loss(torch.cat(decoded), images).item(), peak=2)

"""mini-clip: a small open_clip model of garments and captions (Radford et al., 2021, https://arxiv.org/abs/2103.00020)."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.push_to_hf_hub import save_for_hf
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from transformers import CLIPTokenizer

from bench.training import fashion
from bench.training.cards import CAPTIONS, DATA, Card, Picture, matrix, trained
from bench.training.mini_features import augment
from bench.training.tokens import LENGTH, table, vocabulary_size
from bench.training.trainer import Recipe, seeded, train
from deepcache.metrics.clip_score import Clip, load_clip
from deepcache.models.captions import Subject, subjects

BATCH = 128
RECIPE = Recipe(num_steps=1_800, lr=1e-3, weight_decay=0.05)
NUM_CAPTIONS = 50  # captions among which the card's score looks for the right one


def config() -> dict[str, Any]:
    """Return open_clip's model configuration: a vision transformer on 4 x 4 patches, two text layers."""
    return {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "layers": 4, "width": 96, "head_width": 24, "patch_size": 4},
        "text_cfg": {"context_length": LENGTH, "vocab_size": vocabulary_size(), "width": 96, "heads": 4, "layers": 2},
    }


def train_contrastive(data: fashion.Garments, folder: Path) -> nn.Module:
    """Train to match images with captions; equal captions in a batch all count as right. Resumes from `folder`."""
    tokens = table([str(subject) for subject in subjects()])

    def loss(model: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        painted = fashion.drawn(data, BATCH, step, generator)
        caption = fashion.numbers_of(fashion.subjects_of(painted))
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            image, text, scale = model(augment(painted.images, generator), tokens[caption])
        scores = scale.clamp(max=100) * image.float() @ text.float().T  # (B, B)
        right = (caption[:, None] == caption).float()
        right = right / right.sum(dim=1, keepdim=True)
        return (cross_entropy(scores, right) + cross_entropy(scores.T, right)) / 2

    with seeded():
        model: nn.Module = train(open_clip.CLIP(**config()), loss, RECIPE, folder / "contrastive")
    return model


def export(model: nn.Module, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Write a folder in open_clip's format, fp16, which `deepcache.metrics.clip_score.load_clip(out)` reads.

    Args:
        model: a network of `config()`, trained on images in -1..1; stays as it is.
        tokenizer: the tokenizer that the network was trained with.
        out: the folder, made if need be.
    """
    stored: Any = deepcopy(model).half()
    half = [0.5] * 3  # mean and deviation of each channel: from 0..1 to -1..1
    open_clip.set_model_preprocess_cfg(stored, {"mean": half, "std": half})
    settings = config()
    settings["text_cfg"]["hf_tokenizer_name"] = "mini-clip"  # open_clip takes the folder's, whatever the name
    save_for_hf(stored, tokenizer, settings, str(out), safe_serialization=True)


def card(held_out: fashion.Painted, runs: Path) -> Card:
    """Return the card of mini-clip as it is shipped: scores on held-out images."""
    history = trained("both towers, from nothing", runs / "mini-clip" / "contrastive", BATCH)
    clip, images = load_clip(), (held_out.images + 1) / 2
    scores, own = similarities(clip, images, fashion.subjects_of(held_out))
    count, model = len(images), config()
    about = f"""A small open_clip model: a vision transformer of {model["vision_cfg"]["layers"]} layers on 4 x 4
patches and a text transformer of {model["text_cfg"]["layers"]} layers, both into {model["embed_dim"]} numbers. It
stands for CLIP ViT-g/14 where the embedded models' CLIP scores are measured. Its scores are not
comparable with ViT-g's."""
    first = [int((held_out.garment == garment).nonzero()[0]) for garment in held_out.garment.unique()]
    shown = own[first]
    return Card(
        name="mini-clip",
        about=about,
        facts=(
            DATA,
            f"{CAPTIONS}. Those of the scores below are among them: the images are held out, the captions are not",
            "made by `python -m bench.training mini-clip`",
            history,
        ),
        measured=f"Of the {count:,} held-out images: share for which the right caption has the highest score, of "
        f"{NUM_CAPTIONS} (its own and {NUM_CAPTIONS - 1} others, drawn for each image) and of all "
        f"{scores.shape[1]}; and the CLIP score of real images with their own captions, 100 x mean cosine, "
        "which is what samples can reach:",
        scores={
            f"right_of_{NUM_CAPTIONS}": right_of(scores, own, NUM_CAPTIONS),
            f"right_of_{scores.shape[1]}": right_of(scores, own, scores.shape[1]),
            "clip_score_of_real_images": 100 * scores[torch.arange(count), own].mean().item(),
        },
        picture=Picture(
            matrix(images[first], [str(subjects()[number]) for number in shown], scores[first][:, shown]),
            "a matrix of scores: held-out images by captions, highest on the diagonal where the match is right",
            "Cosine of held-out images (columns, the first of each garment) with their captions (rows).",
        ),
    )


@torch.no_grad()
def similarities(clip: Clip, images: Tensor, shown: list[Subject], *, batch: int = 250) -> tuple[Tensor, Tensor]:
    """Return cosines (B, 490) of images in 0..1 with every caption, and the place (B,) of each image's own caption."""
    texts = clip.text_features([str(subject) for subject in subjects()])
    scores = torch.cat([clip.image_features(some) @ texts.T for some in images.split(batch)])
    return scores, fashion.numbers_of(shown)


def right_of(scores: Tensor, own: Tensor, count: int) -> float:
    """Share of images whose own caption beats `count` - 1 other captions, drawn for each image without replacement.

    Args:
        scores: (B, K) of images with captions.
        own: (B,) the number of each image's right caption.
        count: captions to pick from, at most K.

    Returns:
        The share, 0..1.
    """
    order = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0))
    order[torch.arange(len(own)), own] = -1  # the right caption comes first
    among = scores.gather(1, order.argsort(dim=1)[:, :count])
    return (among[:, 0] > among[:, 1:].amax(dim=1)).float().mean().item()

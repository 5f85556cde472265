"""The card of mini-clip."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bench.training import contrastive
from bench.training.cards.card import DATA, Card, Picture, trained
from bench.training.cards.pictures import matrix
from deepcache.metrics.clip_score import Clip, load_clip
from deepcache.models import captions, fashion

NUM_CAPTIONS = 50  # that the right one is to be picked from


def card(held_out: fashion.Painted, runs: Path) -> Card:
    """Scores of mini-clip as it is shipped, on held-out images."""
    history = trained("both towers, from nothing", runs / "mini-clip" / "contrastive", contrastive.BATCH)
    clip, images = load_clip(), (held_out.images + 1) / 2
    scores, own = similarities(clip, images, captions.subjects_of(held_out))
    count, config = len(images), contrastive.config()
    about = f"""A small open_clip model: a vision transformer of {config["vision_cfg"]["layers"]} layers on 4 x 4
patches and a text transformer of {config["text_cfg"]["layers"]} layers, both into {config["embed_dim"]} numbers. It
stands for CLIP ViT-g/14 where the embedded models' CLIP scores are measured. Its scores are not
comparable with ViT-g's."""
    first = [int((held_out.garment == garment).nonzero()[0]) for garment in held_out.garment.unique()]
    shown = own[first]
    return Card(
        name="mini-clip",
        about=about,
        facts=(
            DATA,
            "captions: garment, colour and background (`deepcache/models/captions.py`), 490 in all. Those of the "
            "scores below are among them: the images are held out, the captions are not",
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
            matrix(images[first], [str(captions.subjects()[number]) for number in shown], scores[first][:, shown]),
            "a matrix of scores: held-out images by captions, highest on the diagonal where the match is right",
            "Cosine of held-out images (columns, the first of each garment) with their captions (rows).",
        ),
    )


@torch.no_grad()
def similarities(
    clip: Clip, images: Tensor, shown: list[captions.Subject], *, batch: int = 250
) -> tuple[Tensor, Tensor]:
    """Cosines (B, 490) of images in 0..1 with every caption, and the number of each image's own, (B,)."""
    texts = clip.text_features([str(subject) for subject in captions.subjects()])
    scores = torch.cat([clip.image_features(some) @ texts.T for some in images.split(batch)])
    return scores, captions.numbers_of(shown)


def right_of(scores: Tensor, own: Tensor, count: int) -> float:
    """Share of images whose own caption beats the `count` - 1 others drawn for it without replacement, 0..1.

    Args:
        scores: (B, K) of images with captions.
        own: (B,) the number of each image's right caption.
        count: of captions to pick from, at most K.
    """
    order = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0))
    order[torch.arange(len(own)), own] = -1  # its own comes first
    among = scores.gather(1, order.argsort(dim=1)[:, :count])
    return (among[:, 0] > among[:, 1:].amax(dim=1)).float().mean().item()

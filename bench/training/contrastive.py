"""mini-clip: a small open_clip model of garments and captions (Radford et al., 2021, https://arxiv.org/abs/2103.00020)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from bench.training.classifier import augment
from bench.training.tokens import LENGTH, table, vocabulary_size
from bench.training.trainer import Recipe, seeded, train
from deepcache.models import captions, fashion

BATCH = 128
RECIPE = Recipe(num_steps=1_800, lr=1e-3, weight_decay=0.05)


def config() -> dict[str, Any]:
    """open_clip's model configuration: a vision transformer on 4 x 4 patches, two text layers."""
    return {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "layers": 4, "width": 96, "head_width": 24, "patch_size": 4},
        "text_cfg": {"context_length": LENGTH, "vocab_size": vocabulary_size(), "width": 96, "heads": 4, "layers": 2},
    }


def train_contrastive(data: fashion.Garments, folder: Path) -> nn.Module:
    """Match images with captions in batches; equal captions in a batch are all right. Resumes from `folder`."""
    tokens = table([str(subject) for subject in captions.subjects()])

    def loss(model: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(data.grey), (BATCH,), generator=generator)
        painted = fashion.paint(data.pick(chosen), seed=step)
        caption = captions.numbers_of(captions.subjects_of(painted))
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            image, text, scale = model(augment(painted.images, generator), tokens[caption])
        scores = scale.clamp(max=100) * image.float() @ text.float().T  # (B, B)
        right = (caption[:, None] == caption).float()
        right = right / right.sum(dim=1, keepdim=True)
        return (cross_entropy(scores, right) + cross_entropy(scores.T, right)) / 2

    with seeded():
        model: nn.Module = train(open_clip.CLIP(**config()), loss, RECIPE, folder / "contrastive")
    return model

"""This module compares the outputs of a U-Net's up blocks from step to step of a generation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.harness.workload import Workload


def similarities(workload: Workload, seeds: range) -> tuple[list[np.ndarray], Tensor]:
    """Compare the outputs of every up block at every two of T steps.

    The features of the paper's models take gigabytes a seed; only those of one seed are in memory at a time.

    Args:
        workload: the model and how it samples.
        seeds: what is sampled, uncached.

    Returns:
        The cosine similarity (T, T) of each up block's outputs, the mean over the seeds; and the outputs (T, C, H, W)
        of the last block for the first seed.
    """
    size = len(seeds) if workload.is_mini else 1
    parts = [
        _of_some(workload, seeds[start : start + size], is_first=not start) for start in range(0, len(seeds), size)
    ]
    return list(np.mean([matrices for matrices, _ in parts], axis=0)), parts[0][1]


def _of_some(workload: Workload, seeds: range, *, is_first: bool) -> tuple[list[np.ndarray], Tensor]:
    features = _features(workload, seeds)
    shown = features[-1][:, 0].clone() if is_first else torch.empty(0)
    return [_similarity(block) for block in features], shown


def _features(workload: Workload, seeds: range) -> list[Tensor]:
    """Return the outputs (T, B, C, H, W) of every up block in an uncached run."""
    kept: list[list[Tensor]] = [[] for _ in workload.pipe.unet.up_blocks]

    def hook(number: int) -> Callable[..., None]:
        return lambda module, args, output: kept[number].append(output[-len(seeds) :].detach().float().cpu())  # noqa: ARG005

    handles = [block.register_forward_hook(hook(i)) for i, block in enumerate(workload.pipe.unet.up_blocks)]
    try:
        workload.images(workload.uncached(), seeds, batch_size=len(seeds), description="features")
    finally:
        for handle in handles:
            handle.remove()
    return [torch.stack(steps) for steps in kept]


def _similarity(features: Tensor) -> np.ndarray:
    """Return the cosine similarity (T, T) of a block's outputs, the mean over the samples."""
    flat = normalize(features.flatten(2), dim=2)  # (T, B, CHW)
    return torch.einsum("tbn,sbn->ts", flat, flat).div(flat.shape[1]).numpy()

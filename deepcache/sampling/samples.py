"""Samples of a pipeline, one generator a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from deepcache.errors import DeepCacheError
from deepcache.sampling.conditions import Conditions, conditions_of
from deepcache.sampling.limits import require_seeds
from deepcache.unets.calls import sides


def sample(
    pipe: Any,
    seeds: Sequence[int],
    *,
    batch_size: int,
    conditions: Conditions | None = None,
    description: str = "sample",
    progress: bool = True,
    disturbed: float = 0.0,
    **arguments: Any,
) -> Tensor:
    """Samples of a pipeline, in the order of the seeds, with a progress bar.

    Args:
        pipe: a diffusers pipeline that takes `generator` and `output_type`.
        seeds: one a sample; each draws its start noise from a generator of its own.
        batch_size: how many run together; changes the samples by no more than float rounding.
        conditions: from a list of seeds to the pipeline's arguments for them; `conditions_of(pipe)` if not given.
        description: of the progress bar.
        progress: whether to show it.
        disturbed: standard deviation of what is added to each start noise: how chaotic a seed is without a cache.
            The pipeline must take `latents`.
        **arguments: passed on, e.g. `num_inference_steps`, `guidance_scale`, `output_type`.

    Returns:
        (B, 3, H, W) in 0..1, or latents with `output_type="latent"`; float32, on the CPU.

    Raises:
        DeepCacheError: a pipeline of videos or sounds, a seed below 0 or from 2^63 on, or as `conditions_of`.
    """
    require_seeds(seeds)
    conditions = conditions or conditions_of(pipe)
    arguments.setdefault("output_type", "pt")
    own_bar = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    done = []
    try:
        with tqdm(
            total=len(seeds), desc=description, unit="image", disable=None if progress else True, leave=False
        ) as bar:
            for start in range(0, len(seeds), batch_size):
                some = seeds[start : start + batch_size]
                generators = [torch.Generator().manual_seed(seed) for seed in some]
                if disturbed:
                    arguments["latents"] = _disturbed(pipe.unet, generators, disturbed)
                done.append(_tensor(_images(pipe, pipe(**conditions(some), generator=generators, **arguments))))
                bar.update(len(some))
    finally:
        pipe.set_progress_bar_config(**own_bar)
    return torch.cat(done)


def _images(pipe: Any, output: Any) -> Any:
    if not hasattr(output, "images"):
        names = ", ".join(output)
        raise DeepCacheError(f"expected a pipeline that gives images, got {type(pipe).__name__}, which gives {names}")
    return output.images


def _tensor(images: Any) -> Tensor:
    """Older pipelines on pixels give (B, H, W, 3) arrays whatever they are asked for."""
    found = images if isinstance(images, Tensor) else torch.from_numpy(images).permute(0, 3, 1, 2)
    return found.float().cpu()


def _disturbed(unet: Any, generators: Sequence[torch.Generator], disturbed: float) -> Tensor:
    """The start noise that the pipeline would draw, and a little more from the same generator."""
    shape = (unet.config.in_channels, *sides(unet.config.sample_size))
    drawn = [torch.randn(2, *shape, generator=generator) for generator in generators]
    return torch.stack([noise + disturbed * more for noise, more in drawn]).to(unet.device, unet.dtype)

"""Seeds become images: `sample` draws each seed's noise from its own generator; batches are halved to fit memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from deepcache.errors import DeepCacheError, is_out_of_memory
from deepcache.sampling.conditions import Conditions, conditions_of
from deepcache.sampling.seeds import require_seeds
from deepcache.unets.calls import sides

Made = TypeVar("Made")


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
    """Sample a pipeline, in the order of the seeds.

    Args:
        pipe: a diffusers pipeline that takes `generator` and `output_type`.
        seeds: one a sample; the start noise of a sample is drawn from its seed's own generator.
        batch_size: how many samples run together, which changes the samples by no more than float rounding.
        conditions: a function from seeds to the pipeline's arguments for them; `conditions_of(pipe)` if not given.
        description, progress: text before the progress bar, and whether there is one.
        disturbed: standard deviation of what is added to each start noise, which shows how chaotic a seed is without a
            cache. The pipeline must take `latents`.
        **arguments: passed on to the pipeline, e.g. `num_inference_steps`, `guidance_scale`, `output_type`.

    Returns:
        (B, 3, H, W) in 0..1, or latents with `output_type="latent"`; float32, on the CPU.
    """
    require_seeds(seeds)
    conditions = conditions or conditions_of(pipe)
    arguments.setdefault("output_type", "pt")
    own_bar = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    done, is_hidden = [], None if progress else True
    try:
        with tqdm(total=len(seeds), desc=description, unit="image", disable=is_hidden, leave=False) as bar:
            for start in range(0, len(seeds), batch_size):
                some = seeds[start : start + batch_size]
                generators = [torch.Generator().manual_seed(seed) for seed in some]
                if disturbed:
                    arguments["latents"] = _disturbed(pipe.unet, generators, disturbed)
                output = pipe(**conditions(some), generator=generators, **arguments)
                if not hasattr(output, "images"):
                    name, given = type(pipe).__name__, ", ".join(output)
                    raise DeepCacheError(f"expected a pipeline that gives images, got {name}, which gives {given}")
                images = output.images  # older pipelines on pixels give (B, H, W, 3) arrays whatever they are asked for
                found = images if isinstance(images, Tensor) else torch.from_numpy(images).permute(0, 3, 1, 2)
                done.append(found.float().cpu())
                bar.update(len(some))
    finally:
        pipe.set_progress_bar_config(**own_bar)
    return torch.cat(done)


def fitting(make: Callable[[int], Made], batch_size: int, *, is_halved: bool) -> Made:
    """Return what `make` gives for a batch size; where memory is too small, halve the size and say so, or refuse."""
    while True:
        try:
            return make(batch_size)
        except (RuntimeError, MemoryError) as error:  # torch's out of memory is a RuntimeError
            if not is_out_of_memory(error):
                raise
        problem = f"not enough memory for {batch_size} samples together"
        if batch_size == 1:
            raise DeepCacheError(f"{problem}; take fp16 or another device")
        if not is_halved:
            raise DeepCacheError(f"{problem}; take --batch-size auto, or less than {batch_size}")
        torch.cuda.empty_cache()  # after the error, which holds the tensors, is gone
        batch_size //= 2
        tqdm.write(f"{problem}; going on with batches of {batch_size}", file=sys.stderr)


def _disturbed(unet: Any, generators: Sequence[torch.Generator], disturbed: float) -> Tensor:
    """Return the start noise that the pipeline would draw, plus a little noise from the same generators."""
    shape = (unet.config.in_channels, *sides(unet.config.sample_size))
    drawn = [torch.randn(2, *shape, generator=generator) for generator in generators]
    return torch.stack([noise + disturbed * more for noise, more in drawn]).to(unet.device, unet.dtype)

"""Seeds become images: `sample` draws each seed's noise from its own generator; batches are halved to fit memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from deepcache.errors import DeepCacheError
from deepcache.sampling.conditions import Conditions, conditions_of
from deepcache.sampling.limits import require_seeds
from deepcache.unets.calls import sides

Made = TypeVar("Made")
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


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
        description: text before the progress bar.
        progress: whether to show a progress bar.
        disturbed: standard deviation of what is added to each start noise, which shows how chaotic a seed is without a
            cache. The pipeline must take `latents`.
        **arguments: passed on to the pipeline, e.g. `num_inference_steps`, `guidance_scale`, `output_type`.

    Returns:
        (B, 3, H, W) in 0..1, or latents with `output_type="latent"`; float32, on the CPU.

    Raises:
        DeepCacheError: the pipeline gives videos or sounds, a seed is below 0 or at least 2^63, or `conditions_of`
            refuses the pipeline.
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


def fitting(make: Callable[[int], Made], batch_size: int, *, is_halved: bool) -> Made:
    """Return what `make` gives for a batch size; halve the batch size until the memory suffices.

    Raises:
        DeepCacheError: the memory does not suffice, and `is_halved` is false or the batch is a single sample.
    """
    while True:
        try:
            return make(batch_size)
        except (RuntimeError, MemoryError) as error:  # torch's out of memory is a RuntimeError
            if not is_out_of_memory(error):
                raise
        batch_size = half_of(batch_size, is_halved=is_halved)  # after the error, which holds the tensors, is gone


def half_of(count: int, *, is_halved: bool, say: Callable[[str], None] | None = None) -> int:
    """Return half of a batch size that did not fit into memory, and say so in one line.

    Raises:
        DeepCacheError: `is_halved` is false, or the batch is a single sample.
    """
    if not is_halved or count == 1:
        raise DeepCacheError(
            f"not enough memory for {count} samples together; "
            + ("take fp16 or another device" if count == 1 else f"take --batch-size auto, or less than {count}")
        )
    torch.cuda.empty_cache()
    line = f"not enough memory for {count} samples together; going on with batches of {count // 2}"
    say(line) if say else print(line, file=sys.stderr, flush=True)
    return count // 2


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out; some allocators raise a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        text in str(error) for text in _OUT_OF_MEMORY
    )


def _images(pipe: Any, output: Any) -> Any:
    if not hasattr(output, "images"):
        names = ", ".join(output)
        raise DeepCacheError(f"expected a pipeline that gives images, got {type(pipe).__name__}, which gives {names}")
    return output.images


def _tensor(images: Any) -> Tensor:
    """Return images as (B, C, H, W); older pipelines on pixels give (B, H, W, 3) arrays whatever they are asked for."""
    found = images if isinstance(images, Tensor) else torch.from_numpy(images).permute(0, 3, 1, 2)
    return found.float().cpu()


def _disturbed(unet: Any, generators: Sequence[torch.Generator], disturbed: float) -> Tensor:
    """Return the start noise that the pipeline would draw, plus a little noise from the same generators."""
    shape = (unet.config.in_channels, *sides(unet.config.sample_size))
    drawn = [torch.randn(2, *shape, generator=generator) for generator in generators]
    return torch.stack([noise + disturbed * more for noise, more in drawn]).to(unet.device, unet.dtype)

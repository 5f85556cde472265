"""A shard's samples, a batch at a time: batches that fit the memory, and nothing but numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.sampling.conditions import Conditions
from deepcache.sampling.finite import finite, watched
from deepcache.sampling.memory import halved, is_out_of_memory, say
from deepcache.sampling.samples import sample
from deepcache.sampling.shards import Images


def _ignore(_: int) -> None:
    pass


@dataclass
class Batches:
    """Samples successive seeds: a `Make` for a store.

    Attributes:
        pipe: with its scheduler; within `deepcache.cached` if wanted.
        conditions: from some seeds to the pipeline's arguments.
        arguments: the same for all.
        batch_size: how many run together.
        is_halved: whether a batch for which the memory is too small is halved, and so are those after it.
        say: told so in one line.
        advance: told after each batch how many samples it had.
    """

    pipe: Any
    conditions: Conditions
    arguments: dict[str, Any]
    batch_size: int
    is_halved: bool = False
    say: Callable[[str], None] = say
    advance: Callable[[int], None] = _ignore

    def __call__(self, seeds: range) -> Images:
        """(B, H, W, 3), rounded to 8 bits as diffusers rounds.

        Raises:
            DeepCacheError: NaN or infinite values, or the memory does not do.
        """
        done, start = [], seeds.start
        while start < seeds.stop:
            images = self._batch(range(start, min(start + self.batch_size, seeds.stop)))
            if images is not None:
                done.append(images)
                start += len(images)
                self.advance(len(images))
        return np.concatenate(done)

    def _batch(self, seeds: range) -> Images | None:
        """None where the memory did not do, and a smaller batch may."""
        try:
            return self._sampled(seeds)
        except (RuntimeError, MemoryError) as error:  # torch's out of memory is a RuntimeError
            if not is_out_of_memory(error):
                raise
        # when the error, which holds the batch's tensors, is gone
        self.batch_size = halved(len(seeds), is_halved=self.is_halved, say=self.say)
        return None

    def _sampled(self, seeds: range) -> Images:
        with watched(self.pipe) as flags:
            images = sample(
                self.pipe, seeds, batch_size=len(seeds), conditions=self.conditions, progress=False, **self.arguments
            )
        _require_finite(seeds, finite(flags, images))
        return _rounded(images)


def _rounded(images: Tensor) -> Images:
    rounded = images.float().cpu().mul(255).round().to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).contiguous().numpy()


def _require_finite(seeds: Sequence[int], is_finite: Tensor) -> None:
    broken = [seed for seed, is_fine in zip(seeds, is_finite.tolist(), strict=True) if not is_fine]
    if broken:
        raise DeepCacheError(
            f"expected finite samples, got NaN or infinite values of seeds {', '.join(map(str, broken))}; "
            "take another dtype or other weights"
        )

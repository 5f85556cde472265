"""A workload's samples go into a store: in batches that fit the memory, and without values that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcache.cache.caching import Cache
from deepcache.errors import DeepCacheError
from deepcache.sampling.samples import half_of, is_out_of_memory
from deepcache.sampling.shards import Pixels
from deepcache.sampling.store import Store
from deepcache.sampling.workers import Progress, Worker
from deepcache.sampling.workload import Sampling, Workload

Flags = list[Tensor]  # (rows,) bool, one a call of a network


def fill(
    store: Store, workload: Workload, sampling: Sampling, seeds: range, *, worker: Worker | None = None, name: str
) -> Cache | None:
    """Sample what a store misses of a worker's share of the seeds, in batches of the store's size.

    Args:
        store: a store with the manifest of the workload and the sampling.
        workload: the pipeline and what its samples show.
        sampling: how it is sampled.
        seeds: the seeds of all workers.
        worker: which of several workers this process is; the only one if not given.
        name: text before the progress bar.

    Returns:
        What the cache did; None for an uncached sampling.

    Raises:
        DeepCacheError: samples are NaN or infinite, the memory does not suffice, or `Store.fill` refuses.
    """
    worker = worker or Worker()
    total = sum(map(len, store.work(seeds, worker)))
    with workload.under(sampling) as cache, Progress(total, name, worker.local_rank) as progress:
        batches = Batches(workload, sampling, store.manifest.batch_size, progress.say, progress.advance)
        store.fill(seeds, batches, worker)
    return cache


@dataclass
class Batches:
    """Samples successive seeds for `Store.fill`, within `workload.under(sampling)`.

    Attributes:
        workload, sampling: what is sampled, and how.
        size: samples of a batch; a batch that is too large for the memory halves it for all that follow.
        say: called with one line when a batch is halved.
        advance: called with the number of samples after each batch.
    """

    workload: Workload
    sampling: Sampling
    size: int
    say: Callable[[str], None]
    advance: Callable[[int], None]

    def __call__(self, seeds: range) -> Pixels:
        """Return the samples, (B, H, W, 3), rounded to 8 bits as diffusers rounds.

        Raises:
            DeepCacheError: samples are NaN or infinite, or the memory does not suffice.
        """
        done, start = [], seeds.start
        while start < seeds.stop:
            pixels = self._batch(range(start, min(start + self.size, seeds.stop)))
            if pixels is not None:
                done.append(pixels)
                start += len(pixels)
                self.advance(len(pixels))
        return np.concatenate(done)

    def _batch(self, seeds: range) -> Pixels | None:
        """Return a batch, or None where the memory did not suffice and the next batch is smaller."""
        try:
            return self._sampled(seeds)
        except (RuntimeError, MemoryError) as error:  # torch's out of memory is a RuntimeError
            if not is_out_of_memory(error):
                raise
        # after the error, which holds the batch's tensors, is gone
        self.size = half_of(len(seeds), is_halved=self.workload.is_halved, say=self.say)
        return None

    def _sampled(self, seeds: range) -> Pixels:
        with watched(self.workload.pipe) as flags:
            images = self.workload.sample(seeds, batch_size=len(seeds), progress=False, **self.sampling.arguments)
        _require_finite(seeds, finite(flags, images))
        rounded = images.mul(255).round().to(torch.uint8)
        return rounded.permute(0, 2, 3, 1).contiguous().numpy()


@contextmanager
def watched(pipe: Any) -> Iterator[Flags]:
    """Within the block, each call of the pipeline's U-Net and decoder adds which rows of its output are finite.

    The images alone do not tell, since pipelines clamp infinities.
    """
    flags: Flags = []

    def note(_: Any, __: Any, output: Any) -> None:
        values = output if isinstance(output, Tensor) else output[0]
        flags.append(values.isfinite().flatten(1).all(1))

    with ExitStack() as stack:
        for network in (pipe.unet, *_decoders(pipe)):
            stack.callback(network.register_forward_hook(note).remove)
        yield flags


def finite(flags: Flags, images: Tensor) -> Tensor:
    """Return (B,) bool: whether a sample's image and all its rows in the networks' outputs were finite.

    Guidance gives each sample two rows, B apart. Rows that cannot be assigned to samples count for all samples.
    """
    found, count = images.isfinite().flatten(1).all(1), len(images)
    for rows in flags:
        parts = rows.view(-1, count).all(0) if len(rows) % count == 0 else rows.all().expand(count)
        found = found & parts.to(found.device)
    return found.cpu()


def _decoders(pipe: Any) -> list[nn.Module]:
    vaes = (getattr(pipe, name, None) for name in ("vae", "vqvae", "movq"))
    decoders = (getattr(vae, "decoder", None) for vae in vaes)
    return [decoder for decoder in decoders if isinstance(decoder, nn.Module)]


def _require_finite(seeds: Sequence[int], is_finite: Tensor) -> None:
    broken = [seed for seed, is_fine in zip(seeds, is_finite.tolist(), strict=True) if not is_fine]
    if broken:
        raise DeepCacheError(
            f"expected finite samples, got NaN or infinite values of seeds {', '.join(map(str, broken))}; "
            "take another dtype or other weights"
        )

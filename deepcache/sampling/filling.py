"""A workload's samples go into a store: in batches that fit the memory, and without values that are not finite."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from deepcache.cache.caching import Cache
from deepcache.errors import DeepCacheError
from deepcache.sampling.samples import fitting
from deepcache.sampling.seeds import Worker
from deepcache.sampling.shards import Pixels
from deepcache.sampling.store import Store
from deepcache.sampling.workload import Sampling, Workload

EVERY_S = 30.0  # between two lines of progress where there is no terminal
Flags = list[Tensor]  # (rows,) bool, one a call of a network


def fill(
    store: Store, workload: Workload, sampling: Sampling, seeds: range, *, worker: Worker | None = None, name: str
) -> Cache | None:
    """Sample what a store misses of a worker's share of the seeds, and return the sampling's cache, if it has one.

    The store has the manifest of the workload and the sampling; `name` stands before the progress bar.
    """
    worker = worker or Worker()
    total = sum(map(len, store.work(seeds, worker)))
    with workload.under(sampling) as cache, _progress(total, name, worker.local_rank) as advance:
        store.fill(seeds, Batches(workload, sampling, store.manifest.batch_size, advance), worker)
    return cache


@contextmanager
def _progress(total: int, name: str, position: int) -> Iterator[Callable[[int], None]]:
    """Show how many images are made, by a bar on a terminal, else by a line every `EVERY_S`; yield what counts them."""
    begin = told = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, told
        bar.update(count)
        done += count
        now = time.monotonic()
        if bar.disable and now - told >= EVERY_S:
            told = now
            tqdm.write(f"{name}: {done} of {total} images, {done / (now - begin):.3g} images/s", file=sys.stderr)

    with tqdm(total=total, desc=name, unit="image", position=position, disable=None, leave=False) as bar:
        yield advance


@dataclass
class Batches:
    """Samples successive seeds for `Store.fill`, within `workload.under(sampling)`."""

    workload: Workload
    sampling: Sampling
    size: int  # of a batch; a batch that is too large for the memory halves the size for all that follow
    advance: Callable[[int], None]  # called with the number of samples after each batch

    def __call__(self, seeds: range) -> Pixels:
        """Return the samples, (B, H, W, 3), rounded to 8 bits as diffusers rounds; refuse NaN and infinity."""
        done: list[Pixels] = []
        while seeds:
            asked = min(self.size, len(seeds))
            pixels = fitting(partial(self._first, seeds), asked, is_halved=self.workload.is_halved)
            if len(pixels) < asked:
                self.size = len(pixels)
            done.append(pixels)
            seeds = seeds[len(pixels) :]
            self.advance(len(pixels))
        return np.concatenate(done)

    def _first(self, seeds: range, count: int) -> Pixels:
        return self._batch(seeds[:count])

    def _batch(self, seeds: range) -> Pixels:
        with watched(self.workload.pipe) as flags:
            images = self.workload.sample(seeds, batch_size=len(seeds), progress=False, **self.sampling.arguments)
        if broken := [str(seed) for seed, is_fine in zip(seeds, finite(flags, images), strict=True) if not is_fine]:
            raise DeepCacheError(
                f"expected finite samples, got NaN or infinite values of seeds {', '.join(broken)}; "
                "take another dtype or other weights"
            )
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

    decoders = (getattr(getattr(pipe, name, None), "decoder", None) for name in ("vae", "vqvae", "movq"))
    with ExitStack() as stack:
        for network in (pipe.unet, *decoders):
            if isinstance(network, nn.Module):
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

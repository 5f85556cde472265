"""Candidates sampled and compared with the reference, a value a seed; what was sampled once is kept as its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcache.cache.caching import cached
from deepcache.metrics.clip_score import Clip, clip_scores
from deepcache.metrics.fidelity import psnr_each
from deepcache.metrics.perceptual import Perceptual
from deepcache.sampling.conditions import Conditions
from deepcache.sampling.samples import sample
from deepcache.sampling.schedulers import scheduler
from deepcache.search.candidates import Candidate, Way

Values = dict[str, NDArray[np.float64]]  # of each measure, (B,)


@dataclass(eq=False)
class Trials:
    """Samples candidates.

    Attributes:
        pipe: its own scheduler is put back after every sampling.
        conditions, arguments, batch_size: of `sample`.
        own: the way that the pipeline is sampled in, whose uncached samples CLIP scores are compared with.
        target: the way whose uncached samples images are compared with.
        perceptual, clip: None where they are not measured.
        num_sampled: with plans, so far.
    """

    pipe: Any
    conditions: Conditions
    arguments: dict[str, Any]
    batch_size: int
    own: Way
    target: Way
    perceptual: Perceptual | None = None
    clip: Clip | None = None
    num_sampled: int = 0
    _values: dict[tuple[Candidate, int], dict[str, float]] = field(default_factory=dict)
    _images: dict[tuple[Way, int], Tensor] = field(default_factory=dict)

    def values(self, candidate: Candidate, seeds: Sequence[int]) -> Values:
        """Of the seeds, of which those that were not sampled before are."""
        new = [seed for seed in seeds if (candidate, seed) not in self._values]
        self.num_sampled += len(new)
        if new:
            with cached(self.pipe, candidate.plan):
                images = self._sample(candidate.way, new)
            found = self._measured(images, new)
            for number, seed in enumerate(new):
                self._values[candidate, seed] = {name: float(each[number]) for name, each in found.items()}
        rows = [self._values[candidate, seed] for seed in seeds]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _measured(self, images: Tensor, seeds: Sequence[int]) -> Values:
        target = self._uncached(self.target, seeds)
        found = {"psnr_db": np.array(psnr_each(images, target))}
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual.distance(images, target).double().numpy()
        if self.clip is not None:
            prompts, own = self.conditions(seeds)["prompt"], self._uncached(self.own, seeds)
            found["clip_loss"] = clip_scores(self.clip, own, prompts) - clip_scores(self.clip, images, prompts)
        return found

    def _uncached(self, way: Way, seeds: Sequence[int]) -> Tensor:
        new = [seed for seed in seeds if (way, seed) not in self._images]
        if new:
            for seed, image in zip(new, self._sample(way, new), strict=True):
                self._images[way, seed] = image
        return torch.stack([self._images[way, seed] for seed in seeds])

    def _sample(self, way: Way, seeds: Sequence[int]) -> Tensor:
        with self.solver(way):
            return sample(
                self.pipe,
                seeds,
                batch_size=self.batch_size,
                conditions=self.conditions,
                progress=False,
                num_inference_steps=way.num_steps,
                **self.arguments,
            )

    @contextmanager
    def solver(self, way: Way) -> Iterator[None]:
        """Within the block the pipeline has the way's scheduler."""
        own = self.pipe.scheduler
        if way.scheduler is not None:
            self.pipe.scheduler = scheduler(way.scheduler, own.config)
        try:
            yield
        finally:
            self.pipe.scheduler = own

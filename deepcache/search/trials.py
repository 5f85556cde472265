"""Candidates are sampled and compared with reference images, a value a seed; nothing is sampled twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.metrics import clip_score
from deepcache.metrics import perceptual as perceptual_metric
from deepcache.metrics.clip_score import Clip, clip_scores, load_clip
from deepcache.metrics.fidelity import psnr_each
from deepcache.metrics.perceptual import Perceptual, load_perceptual
from deepcache.models.embedded import SIZE, is_embedded
from deepcache.sampling.workload import Sampling, Workload, image_size_of
from deepcache.search.candidates import Candidate
from deepcache.unets.pipelines import unet_of

Values = dict[str, NDArray[np.float64]]  # of each fidelity, (B,)


@dataclass(eq=False)
class Trials:
    """The candidates of a workload that were sampled so far.

    Attributes:
        workload: what is sampled.
        own: the workload's own solver and steps; CLIP scores are compared with its uncached samples.
        target: the solver and steps whose uncached samples images are compared with.
        perceptual, clip: what measures these fidelities; None where they are not measured.
        num_sampled: how many samples with plans were made.
    """

    workload: Workload
    own: Sampling
    target: Sampling
    perceptual: Perceptual | None = None
    clip: Clip | None = None
    num_sampled: int = 0
    _values: dict[tuple[Candidate, int], dict[str, float]] = field(default_factory=dict)
    _images: dict[tuple[Sampling, int], Tensor] = field(default_factory=dict)

    def values(self, candidate: Candidate, seeds: Sequence[int]) -> Values:
        """Return the fidelities of `seeds`, (B,) each; sample only those that no earlier call has sampled."""
        new = [seed for seed in seeds if (candidate, seed) not in self._values]
        self.num_sampled += len(new)
        if new:
            found = self._measured(self._sample(candidate.sampling, new), new)
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
            prompts, own = self.workload.conditions(seeds)["prompt"], self._uncached(self.own, seeds)
            found["clip_loss"] = clip_scores(self.clip, own, prompts) - clip_scores(self.clip, images, prompts)
        return found

    def _uncached(self, solver: Sampling, seeds: Sequence[int]) -> Tensor:
        new = [seed for seed in seeds if (solver, seed) not in self._images]
        if new:
            for seed, image in zip(new, self._sample(solver, new), strict=True):
                self._images[solver, seed] = image
        return torch.stack([self._images[solver, seed] for seed in seeds])

    def _sample(self, sampling: Sampling, seeds: Sequence[int]) -> Tensor:
        with self.workload.under(sampling):
            return self.workload.sample(seeds, progress=False, **sampling.arguments)


def distance_for(pipe: Any, given: Perceptual | None) -> Perceptual:
    """Return the given perceptual distance, or the usual distance.

    Raises:
        DeepCacheError: the distance is of mini-features, and the images are not those that these were trained on.
    """
    found = given or load_perceptual(device=unet_of(pipe)[1].device)
    instead = "distance=load_perceptual(FILE) with torchvision's AlexNet weights"
    _require_knows(found.name, perceptual_metric.MINI, pipe, instead, is_given=given is not None)
    return found


def clip_for(workload: Workload, given: Clip | None, seeds: Sequence[int]) -> Clip:
    """Return the given CLIP model, or mini-clip.

    Raises:
        DeepCacheError: the workload has no prompts to score, or mini-clip was not trained on such images.
    """
    if "prompt" not in workload.conditions(seeds[:1]):
        raise DeepCacheError("expected a pipeline with prompts for clip_loss; take psnr_db or perceptual instead")
    found = given or load_clip(device=unet_of(workload.pipe)[1].device)
    instead = "clip=load_clip(...), such as the paper's ViT-g-14"
    _require_knows(found.name, clip_score.MINI, workload.pipe, instead, is_given=given is not None)
    return found


def _require_knows(name: str, mini: str, pipe: Any, instead: str, *, is_given: bool) -> None:
    """Refuse a mini extractor for images that it was not trained on, before anything is sampled.

    Images of another model that have the embedded models' size are measured only where the caller gave the extractor.
    """
    height, width = image_size_of(pipe)
    if name == mini and ((height, width) != SIZE or not (is_given or is_embedded(pipe))):
        raise DeepCacheError(
            f"expected images of {SIZE[0]} x {SIZE[1]} by an embedded model for {name}, got {height} x {width} by a "
            f"{type(pipe).__name__}; pass {instead}"
        )

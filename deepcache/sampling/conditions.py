"""What a seed's sample is asked to show: its class or its prompt, dependent on the seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deepcache.models.captions import subject_of

Conditions = Callable[[Sequence[int]], dict[str, Any]]


def labels_of(seeds: Sequence[int], num_classes: int) -> list[int]:
    """Balanced classes that depend on the seed alone: seed modulo number of classes."""
    return [seed % num_classes for seed in seeds]


def prompts_of(seeds: Sequence[int]) -> list[str]:
    """Captions, balanced over garments, colours and backgrounds."""
    return [str(subject_of(seed)) for seed in seeds]


def conditions_of(pipe: Any) -> Conditions:
    """From seeds to the pipeline's arguments: `class_labels`, `prompt`, or no more than the `batch_size`."""
    if hasattr(pipe, "class_embedder"):
        return lambda seeds: {"class_labels": labels_of(seeds, pipe.class_embedder.config.num_classes)}
    if hasattr(pipe, "text_encoder"):
        return lambda seeds: {"prompt": prompts_of(seeds)}
    return lambda seeds: {"batch_size": len(seeds)}

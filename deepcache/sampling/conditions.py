"""What a seed's sample is asked to show: its class or its prompt, dependent on the seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar

from deepcache.errors import DeepCacheError
from deepcache.models.captions import subject_of

Conditions = Callable[[Sequence[int]], dict[str, Any]]
CLASSES = ("balanced", "random")


def labels_of(seeds: Sequence[int], num_classes: int) -> list[int]:
    """Balanced classes that depend on the seed alone: seed modulo number of classes."""
    return [seed % num_classes for seed in seeds]


def random_labels_of(seeds: Sequence[int], num_classes: int) -> list[int]:
    """Classes drawn as the paper's released script draws them, each by its seed's hash: apart from its noise."""
    digests = [sha256(f"class of seed {seed}".encode()).digest() for seed in seeds]
    return [int.from_bytes(digest) % num_classes for digest in digests]


def prompts_of(seeds: Sequence[int]) -> list[str]:
    """Captions, balanced over garments, colours and backgrounds."""
    return [str(subject_of(seed)) for seed in seeds]


@dataclass(frozen=True)
class Unconditional:
    """No more than the number of images."""

    rule: ClassVar[str] = "none"

    def __call__(self, seeds: Sequence[int]) -> dict[str, Any]:
        return {"batch_size": len(seeds)}


@dataclass(frozen=True)
class Labels:
    """Classes, by one of `CLASSES`."""

    num_classes: int
    classes: str = "balanced"

    @property
    def rule(self) -> str:
        return f"{self.classes} classes of {self.num_classes}"

    def __call__(self, seeds: Sequence[int]) -> dict[str, Any]:
        labels = labels_of if self.classes == "balanced" else random_labels_of
        return {"class_labels": labels(seeds, self.num_classes)}


@dataclass(frozen=True)
class Captions:
    """Of the embedded models' garments."""

    rule: ClassVar[str] = "captions of garments"

    def __call__(self, seeds: Sequence[int]) -> dict[str, Any]:
        return {"prompt": prompts_of(seeds)}


@dataclass(frozen=True)
class Prompts:
    """Sample i takes line i, and begins again after the last."""

    lines: tuple[str, ...]

    @property
    def rule(self) -> str:
        return f"{len(self.lines)} prompts sha256:{sha256(chr(0).join(self.lines).encode()).hexdigest()}"

    def __call__(self, seeds: Sequence[int]) -> dict[str, Any]:
        return {"prompt": [self.lines[seed % len(self.lines)] for seed in seeds]}


def conditions_of(
    pipe: Any, *, classes: str | None = None, prompts: Sequence[str] | None = None
) -> Unconditional | Labels | Captions | Prompts:
    """From seeds to the pipeline's arguments: `class_labels`, `prompt`, or no more than the `batch_size`.

    Args:
        pipe: what it has, a class embedder, a text encoder or neither, says which.
        classes: one of `CLASSES`; balanced if not given.
        prompts: lines for `Prompts`; `Captions` if not given.

    Raises:
        DeepCacheError: classes or prompts for a model that takes none.
    """
    is_labelled, is_prompted = hasattr(pipe, "class_embedder"), hasattr(pipe, "text_encoder")
    if (classes is not None and not is_labelled) or (prompts is not None and not is_prompted):
        asked = "classes" if classes is not None and not is_labelled else "prompts"
        raise DeepCacheError(f"expected a model with {asked}, which {type(pipe).__name__} has not; leave them out")
    if is_labelled:
        return Labels(pipe.class_embedder.config.num_classes, classes or "balanced")
    if is_prompted:
        return Captions() if prompts is None else Prompts(tuple(prompts))
    return Unconditional()

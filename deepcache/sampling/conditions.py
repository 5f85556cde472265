"""What a sample is asked to show: a class or a prompt, which depends on its seed alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from inspect import signature
from typing import Any, ClassVar

from deepcache.errors import DeepCacheError
from deepcache.models.captions import subject_of
from deepcache.models.embedded import is_embedded

Conditions = Callable[[Sequence[int]], dict[str, Any]]  # from seeds to the pipeline's arguments for them
CLASSES = ("balanced", "random")


def labels_of(seeds: Sequence[int], num_classes: int) -> list[int]:
    """Return the class of each seed: the seed modulo the number of classes, so that classes are balanced."""
    return [seed % num_classes for seed in seeds]


def random_labels_of(seeds: Sequence[int], num_classes: int) -> list[int]:
    """Return the class of each seed, drawn uniformly as in the paper's released script.

    A class is drawn by the seed's hash, so that it is independent of the seed's noise.
    """
    digests = [sha256(f"class of seed {seed}".encode()).digest() for seed in seeds]
    return [int.from_bytes(digest) % num_classes for digest in digests]


def prompts_of(seeds: Sequence[int]) -> list[str]:
    """Return a caption for each seed, balanced over garments, colours and backgrounds."""
    return [str(subject_of(seed)) for seed in seeds]


@dataclass(frozen=True)
class Unconditional:
    """Asks an unconditional pipeline for a number of images."""

    rule: ClassVar[str] = "none"

    def __call__(self, seeds: Sequence[int]) -> dict[str, Any]:
        return {"batch_size": len(seeds)}


@dataclass(frozen=True)
class Labels:
    """Asks for a class a seed, balanced or random (`CLASSES`)."""

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
    """Asks an embedded model for a garment a seed."""

    rule: ClassVar[str] = "captions of garments"

    def __call__(self, seeds: Sequence[int]) -> dict[str, Any]:
        return {"prompt": prompts_of(seeds)}


@dataclass(frozen=True)
class Prompts:
    """Asks for prompt i modulo the number of prompts where the seed is i.

    Raises:
        DeepCacheError: there are no prompts, or they are no texts.
    """

    lines: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.lines or not all(isinstance(line, str) for line in self.lines):
            raise DeepCacheError(f"expected prompts as a list of texts, got {list(self.lines)!r:.200}")

    @property
    def rule(self) -> str:
        return f"{len(self.lines)} prompts sha256:{sha256(chr(0).join(self.lines).encode()).hexdigest()}"

    def __call__(self, seeds: Sequence[int]) -> dict[str, Any]:
        return {"prompt": [self.lines[seed % len(self.lines)] for seed in seeds]}


def conditions_of(
    pipe: Any, *, classes: str | None = None, prompts: Sequence[str] | None = None
) -> Unconditional | Labels | Captions | Prompts:
    """Return the function from seeds to a pipeline's arguments: `class_labels`, `prompt`, or only a `batch_size`.

    Args:
        pipe: a diffusers pipeline; the arguments of its call decide what it is asked.
        classes: one of `CLASSES`, for a class-conditional pipeline; balanced if not given.
        prompts: what the samples show; seed i takes prompt i modulo their number. The embedded models take captions of
            garments if none are given.

    Raises:
        DeepCacheError: the model takes no classes or prompts and some are given, it needs prompts and none are given,
            or it takes something else.
    """
    takes = signature(pipe.__call__).parameters
    is_labelled, is_prompted = hasattr(pipe, "class_embedder"), _is_prompted(pipe, takes)
    if (classes is not None and not is_labelled) or (prompts is not None and not is_prompted):
        asked = "classes" if classes is not None and not is_labelled else "prompts"
        raise DeepCacheError(f"expected a model with {asked}, which {type(pipe).__name__} has not; leave them out")
    if is_labelled:
        return Labels(pipe.class_embedder.config.num_classes, classes or "balanced")
    if prompts is not None:
        if isinstance(prompts, str):
            raise DeepCacheError(f"expected prompts as a list, got the text {prompts!r:.200}; put it in a list")
        return Prompts(tuple(prompts))
    if is_prompted:
        if is_embedded(pipe):
            return Captions()
        raise DeepCacheError(
            f"expected prompts for {type(pipe).__name__}, which is none of the embedded models and shows what it is "
            "asked to; pass prompts=[...] (on the command line --prompts FILE)"
        )
    if "batch_size" not in takes:
        raise DeepCacheError(
            f"expected a pipeline that takes prompts, classes or a batch size, got {type(pipe).__name__}; pass "
            "conditions=, a function from a list of seeds to the pipeline's arguments for them"
        )
    return Unconditional()


def given_conditions(pipe: Any, prompts: Sequence[str] | None, conditions: Conditions | None) -> Conditions:
    """Return the conditions that a caller gave, else `conditions_of` the pipeline and the prompts.

    Raises:
        DeepCacheError: both prompts and conditions are given, or `conditions_of` refuses the pipeline.
    """
    if conditions is None:
        return conditions_of(pipe, prompts=prompts)
    if prompts is not None:
        raise DeepCacheError("expected either prompts or conditions, got both; conditions can pass the prompts on")
    return conditions


def _is_prompted(pipe: Any, takes: Mapping[str, Any]) -> bool:
    """Return whether a pipeline takes prompts and has a text encoder."""
    return "prompt" in takes and getattr(pipe, "text_encoder", None) is not None

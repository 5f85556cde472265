"""What a seed's sample is asked to show: its class or its prompt, dependent on the seed alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from inspect import signature
from typing import Any, ClassVar

from deepcache.errors import DeepCacheError
from deepcache.models.captions import subject_of
from deepcache.models.embedded import is_embedded

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
    """Seed i takes prompt i, modulo their number.

    Raises:
        DeepCacheError: no prompts, or something else than texts.
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
    """From seeds to the pipeline's arguments: `class_labels`, `prompt`, or no more than the `batch_size`.

    Args:
        pipe: the arguments that it takes say which.
        classes: one of `CLASSES`; balanced if not given.
        prompts: what the samples are asked to show; if not given, the embedded models take captions of garments.

    Raises:
        DeepCacheError: classes or prompts for a model that takes none, no prompts for a model that needs some, or a
            model that takes something else.
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
    """The conditions that a caller gave, or those of his prompts and the pipeline.

    Raises:
        DeepCacheError: prompts and conditions together, or as `conditions_of`.
    """
    if conditions is None:
        return conditions_of(pipe, prompts=prompts)
    if prompts is not None:
        raise DeepCacheError("expected either prompts or conditions, got both; conditions can pass the prompts on")
    return conditions


def _is_prompted(pipe: Any, takes: Mapping[str, Any]) -> bool:
    """Whether a pipeline takes prompts and has what encodes them."""
    return "prompt" in takes and getattr(pipe, "text_encoder", None) is not None

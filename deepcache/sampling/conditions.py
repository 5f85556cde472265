"""What a sample is asked to show: a class or a prompt, which depends on the sample's seed alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from inspect import signature
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError
from deepcache.files import as_path, json_value, read_text, refused
from deepcache.models.captions import subject_of
from deepcache.models.embedded import is_embedded

Conditions = Callable[[Sequence[int]], dict[str, Any]]  # from seeds to the pipeline's arguments for them
MOST_CHARACTERS = 10_000  # characters of a prompt; text encoders read at most 512 tokens
_COLUMN = "Prompt"  # PartiPrompts.tsv's column
_KINDS = f"prompts (lines, a .tsv with the column {_COLUMN}, or COCO's captions .json)"


@dataclass(frozen=True)
class Ruled:
    """Conditions with their rule, a text that tells these conditions from others in a manifest."""

    rule: str
    conditions: Conditions

    def __call__(self, seeds: Sequence[int]) -> dict[str, Any]:
        return self.conditions(seeds)


def labels_of(seeds: Sequence[int], num_classes: int) -> list[int]:
    """Return the class of each seed: the seed modulo the number of classes, so that classes are balanced."""
    return [seed % num_classes for seed in seeds]


def random_labels_of(seeds: Sequence[int], num_classes: int) -> list[int]:
    """Return the class of each seed, drawn uniformly by the seed's hash, which is independent of the seed's noise."""
    digests = [sha256(f"class of seed {seed}".encode()).digest() for seed in seeds]
    return [int.from_bytes(digest) % num_classes for digest in digests]


def prompts_of(seeds: Sequence[int]) -> list[str]:
    """Return a caption for each seed, balanced over garments, colours and backgrounds."""
    return [str(subject_of(seed)) for seed in seeds]


def conditions_of(pipe: Any, *, classes: str | None = None, prompts: Sequence[str] | None = None) -> Ruled:
    """Return the function from seeds to a pipeline's arguments: `class_labels`, `prompt`, or only a `batch_size`.

    Args:
        pipe: a diffusers pipeline; the arguments of its call decide what it is asked.
        classes: "balanced" (the default) or "random", as the paper's released script draws classes.
        prompts: what the samples show; seed i takes prompt i modulo their number. The embedded models take captions of
            garments if none are given.
    """
    takes, name = signature(pipe.__call__).parameters, type(pipe).__name__
    is_labelled = hasattr(pipe, "class_embedder")
    is_prompted = "prompt" in takes and getattr(pipe, "text_encoder", None) is not None
    for asked, given, is_taken in (("classes", classes, is_labelled), ("prompts", prompts, is_prompted)):
        if given is not None and not is_taken:
            raise DeepCacheError(f"expected a model with {asked}, which {name} has not; leave them out")
    if classes not in (None, "balanced", "random"):
        raise DeepCacheError(f"expected classes to be balanced or random, got {classes!r}")
    if is_labelled:
        count, labels = pipe.class_embedder.config.num_classes, random_labels_of if classes == "random" else labels_of
        rule = f"{classes or 'balanced'} classes of {count}"
        return Ruled(rule, lambda seeds: {"class_labels": labels(seeds, count)})
    if prompts is not None:
        lines = () if isinstance(prompts, str) else tuple(prompts)
        if not lines or not all(isinstance(line, str) for line in lines):
            raise DeepCacheError(f"expected prompts as a list of texts, got {prompts!r:.200}; pass ['a coat', ...]")
        rule = f"{len(lines)} prompts sha256:{sha256(chr(0).join(lines).encode()).hexdigest()}"
        return Ruled(rule, lambda seeds: {"prompt": [lines[seed % len(lines)] for seed in seeds]})
    if is_prompted and is_embedded(pipe):
        return Ruled("captions of garments", lambda seeds: {"prompt": prompts_of(seeds)})
    if is_prompted:
        raise DeepCacheError(
            f"expected prompts for {name}, which is none of the embedded models and shows what it is asked to; pass "
            "prompts=[...] (on the command line --prompts FILE)"
        )
    if "batch_size" not in takes:
        raise DeepCacheError(
            f"expected a pipeline that takes prompts, classes or a batch size, got {name}; pass conditions=, a "
            "function from a list of seeds to the pipeline's arguments for them"
        )
    return Ruled("none", lambda seeds: {"batch_size": len(seeds)})


def given_conditions(pipe: Any, prompts: Sequence[str] | None, conditions: Conditions | None) -> Conditions:
    """Return the conditions that a caller gave, else `conditions_of` the pipeline and the prompts; refuse both."""
    if conditions is None:
        return conditions_of(pipe, prompts=prompts)
    if prompts is not None:
        raise DeepCacheError("expected either prompts or conditions, got both; conditions can pass the prompts on")
    return conditions


def prompts_in(path: Path | str) -> list[str]:
    """Return the prompts of a UTF-8 file, in the file's order; blank prompts are left out.

    A `.tsv` (in small letters or capitals) has a column `Prompt`. A `.json` has COCO's captions: the first caption of
    each image that is not blank is taken, in the order of the images' ids. Any other file has a prompt a line.
    """
    path = as_path(path, _KINDS)
    text, suffix = read_text(path, _KINDS), path.suffix.lower()
    if "\0" in text:
        raise refused(path, _KINDS, "which has a null character and is no text; pass a text file")
    if suffix == ".json":
        found = _captions(text, path)
    else:
        lines = re.split(r"\r\n|\r|\n", text)  # as in text editors; `str.splitlines` would also cut at rarer characters
        found = _column(lines, path) if suffix == ".tsv" else lines
    found = [prompt.strip() for prompt in found if prompt.strip()]
    if not found:
        raise refused(path, _KINDS, "which has none")
    for number, prompt in enumerate(found, 1):
        if len(prompt) > MOST_CHARACTERS:
            reason = f"whose prompt {number} has {len(prompt):,} characters; shorten it to {MOST_CHARACTERS:,}"
            raise refused(path, _KINDS, reason)
    return found


def _column(lines: list[str], path: Path) -> list[str]:
    """Return the cells of a table's column; the csv module would misread the quotes within PartiPrompts' cells."""
    header, *rows = ([cell.strip() for cell in line.split("\t")] for line in lines)
    if header.count(_COLUMN) != 1:
        raise refused(path, _KINDS, f"whose first line does not name one column {_COLUMN}")
    place = header.index(_COLUMN)
    return [row[place] for row in rows if len(row) > place]


def _captions(text: str, path: Path) -> list[str]:
    """Return the first caption of each of COCO's images that is not blank, in the order of the images' ids."""
    found = json_value(text, _KINDS, path)
    annotations = found.get("annotations") if isinstance(found, dict) else None
    if not isinstance(annotations, list) or not all(
        isinstance(each, dict) and type(each.get("image_id")) is int and isinstance(each.get("caption"), str)
        for each in annotations
    ):
        raise refused(path, _KINDS, "which has no `annotations`, each with a whole `image_id` and a text as `caption`")
    first: dict[int, str] = {}
    for annotation in annotations:
        image = annotation["image_id"]
        first[image] = first.get(image, "") or annotation["caption"].strip()
    if blank := [image for image in sorted(first) if not first[image]]:
        raise refused(path, _KINDS, f"where image {blank[0]} has no caption that is not blank; delete its annotations")
    return [first[image] for image in sorted(first)]

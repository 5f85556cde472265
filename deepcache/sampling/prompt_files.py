"""Prompts from files: a line each, PartiPrompts' table, or COCO's captions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError

COLUMN = "Prompt"  # of PartiPrompts.tsv


def prompts_in(path: Path | str) -> list[str]:
    """The prompts of a file, in its order, by its ending.

    Args:
        path: `.tsv` with a column `Prompt`; `.json` of COCO's captions: the first caption of each image, in the order
            of the images' ids; any other: a prompt a line, without empty lines.

    Raises:
        DeepCacheError: no such file, or no prompts in it.
    """
    path = Path(path)
    read = {".tsv": _table, ".json": _coco}.get(path.suffix, _lines)
    try:
        found = read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeepCacheError(
            f"expected prompts in {path} (lines, a .tsv with the column {COLUMN}, or COCO's captions .json), got none "
            f"({type(error).__name__}: {error})"
        ) from error
    if not found:
        raise DeepCacheError(f"expected prompts in {path}, which has none")
    return found


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _table(text: str) -> list[str]:
    # its prompts have quotes in them, and none around them
    rows = csv.DictReader(text.split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
    return [row[COLUMN].strip() for row in rows if row[COLUMN].strip()]


def _coco(text: str) -> list[str]:
    first: dict[int, Any] = {}
    for annotation in json.loads(text)["annotations"]:
        first.setdefault(annotation["image_id"], annotation["caption"])
    return [first[image].strip() for image in sorted(first)]

"""Prompts are read from files: a prompt a line, PartiPrompts' table, or COCO's captions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from deepcache.files import as_path, json_value, read_text, refused

COLUMN = "Prompt"  # PartiPrompts.tsv's column
MOST_CHARACTERS = 10_000  # characters of a prompt; text encoders read at most 512 tokens
_KINDS = f"prompts (lines, a .tsv with the column {COLUMN}, or COCO's captions .json)"


def prompts_in(path: Path | str) -> list[str]:
    """Return the prompts of a UTF-8 file, in the file's order.

    The file's ending, in small letters or capitals, tells the format.

    Args:
        path: a `.tsv` has a column `Prompt`, and rows without a prompt are left out. A `.json` has COCO's captions:
            the first caption of each image that is not blank is taken, in the order of the images' ids. Any other file
            has a prompt a line, and blank lines are left out. A byte order mark is no part of a prompt.

    Raises:
        DeepCacheError: there is no such file, it is not UTF-8 text, it has no prompts, an image of COCO's has no
            caption, or a prompt has more than `MOST_CHARACTERS`.
    """
    path = as_path(path, _KINDS)
    read = {".tsv": _table, ".json": _coco}.get(path.suffix.lower(), _lines)
    text = read_text(path, _KINDS)
    if "\0" in text:
        raise refused(path, _KINDS, "which has a null character and is no text; pass a text file")
    found = read(text, path)
    if not found:
        raise refused(path, _KINDS, "which has none")
    for number, prompt in enumerate(found, 1):
        if len(prompt) > MOST_CHARACTERS:
            reason = f"whose prompt {number} has {len(prompt):,} characters; shorten it to {MOST_CHARACTERS:,}"
            raise refused(path, _KINDS, reason)
    return found


def _lines(text: str, path: Path) -> list[str]:  # noqa: ARG001 (the signature of the other two readers)
    return [line.strip() for line in _split(text) if line.strip()]


def _table(text: str, path: Path) -> list[str]:
    # PartiPrompts' cells have quotes within them and none around them, so that the csv module is of no use
    header, *rows = ([cell.strip() for cell in line.split("\t")] for line in _split(text))
    if header.count(COLUMN) != 1:
        raise refused(path, _KINDS, f"whose first line does not name one column {COLUMN}")
    place = header.index(COLUMN)
    return [row[place] for row in rows if len(row) > place and row[place]]


def _coco(text: str, path: Path) -> list[str]:
    found = json_value(text, _KINDS, path)
    annotations = found.get("annotations") if isinstance(found, dict) else None
    if not isinstance(annotations, list) or not all(map(_is_annotation, annotations)):
        raise refused(path, _KINDS, "which has no `annotations`, each with a whole `image_id` and a text as `caption`")
    first: dict[int, str] = {}
    for annotation in annotations:
        image = annotation["image_id"]
        first[image] = first.get(image, "") or annotation["caption"].strip()
    if blank := [image for image in sorted(first) if not first[image]]:
        raise refused(path, _KINDS, f"where image {blank[0]} has no caption that is not blank; delete its annotations")
    return [first[image] for image in sorted(first)]


def _is_annotation(found: Any) -> bool:
    return isinstance(found, dict) and type(found.get("image_id")) is int and isinstance(found.get("caption"), str)


def _split(text: str) -> list[str]:
    """Return the lines as a text editor counts them; `str.splitlines` would also cut at rarer characters."""
    return re.split(r"\r\n|\r|\n", text)

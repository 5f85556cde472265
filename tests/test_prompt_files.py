"""Prompts from files, each layout written as its source writes it (exact)."""

from __future__ import annotations

import json

import pytest

from deepcache.errors import DeepCacheError
from deepcache.sampling.prompt_files import prompts_in


def test_a_prompt_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text('a red sneaker\n\n  été, "quoted"\t1 \r\nlast', encoding="utf-8")
    assert prompts_in(path) == ["a red sneaker", 'été, "quoted"\t1', "last"]


def test_parti_prompts_with_quotes_within(tmp_path):
    path = tmp_path / "PartiPrompts.tsv"
    lines = ["Prompt\tCategory\tChallenge\tNote", "bond\tAbstract\tBasic\tBiology", '"Hi" on a wall\tArts\tComplex\t']
    path.write_text("\n".join(lines) + "\n")
    assert prompts_in(path) == ["bond", '"Hi" on a wall']


def test_the_first_caption_of_each_of_cocos_images_by_their_ids(tmp_path):
    path = tmp_path / "captions_val2017.json"
    said = [(139, "third"), (30, "first "), (139, "fourth"), (30, "second")]
    path.write_text(json.dumps({"annotations": [{"image_id": i, "id": 9, "caption": text} for i, text in said]}))
    assert prompts_in(path) == ["first", "third"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("empty.txt", "\n \n"),
        ("none.tsv", ""),
        ("other.tsv", "Text\tCategory\nbond\tAbstract\n"),
        ("short.tsv", "Category\tPrompt\nbond\n"),
        ("cut.json", '{"annotations": ['),
        ("other.json", '{"images": []}'),
        ("list.json", "[1]"),
        ("nothing.json", '{"annotations": []}'),
        ("latin.txt", b"\xe9t\xe9"),
        ("missing", None),
    ],
)
def test_a_file_without_prompts_is_one_line(tmp_path, name, text):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DeepCacheError, match=f"expected prompts in {path}") as caught:
        prompts_in(path)
    assert "\n" not in str(caught.value)

"""Prompts from files, each layout written as its source writes it (exact)."""

from __future__ import annotations

import json

import pytest

from deepcache.errors import DeepCacheError
from deepcache.sampling.conditions import prompts_in


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


@pytest.mark.parametrize("name", ["a.txt", "b.tsv", "c.TSV", "d.json", "e.Json"])
def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path, name):
    coco = '{"annotations": [{"image_id": 1, "caption": "bond"}]}'
    text = {".tsv": "Prompt\tNote\nbond\tx\n", ".json": coco}.get(name[1:].lower(), "bond\n")
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / name).write_text(text, encoding=encoding)
        assert prompts_in(tmp_path / name) == ["bond"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_they_do_on_each_system_and_nowhere_else(tmp_path, end):
    path = tmp_path / "prompts.txt"
    path.write_bytes(end.join(["a\u2028b\x0bc", "", "d\x85e"]).encode())
    assert prompts_in(path) == ["a\u2028b\x0bc", "d\x85e"]


def test_a_cell_of_any_length_and_a_row_without_prompt_are_read(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text(f"Note\tPrompt\n{'x' * 200_000}\tbond\n\t\nshort\n  \t  \nx\ty\tz\n")
    assert prompts_in(path) == ["bond", "y"]


def test_a_blank_caption_gives_way_to_the_images_next_one(tmp_path):
    path = tmp_path / "captions.json"
    annotations = [{"image_id": 1, "caption": " "}, {"image_id": 1, "caption": "bond"}]
    path.write_text(json.dumps({"annotations": annotations}))
    assert prompts_in(path) == ["bond"]
    path.write_text(json.dumps({"annotations": [*annotations, {"image_id": 0, "caption": "\t"}]}))
    with pytest.raises(DeepCacheError, match="image 0 has no caption"):
        prompts_in(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bond".encode("utf-16"), "is in UTF-16; save it in UTF-8"),
        (b"bond\n\xe9t\xe9", "not in UTF-8 (byte 5 is 0xe9)"),
        (b"bond\0", "is no text"),
        (b"bond\n" + b"x" * 10_000_000, "prompt 2 has 10,000,000 characters"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused_with_its_reason(tmp_path, text, said):
    (tmp_path / "prompts.txt").write_bytes(text)
    with pytest.raises(DeepCacheError) as caught:
        prompts_in(tmp_path / "prompts.txt")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


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
        ("type.json", '{"annotations": [{"image_id": 1, "caption": null}]}'),
        ("key.json", '{"annotations": [{"image_id": [1], "caption": "a"}]}'),
        ("deep.json", "[" * 20_000),
        ("huge.json", '{"annotations": [{"image_id": ' + "9" * 5_000 + "}]}"),
        ("half.json", '{"annotations": [{"image_id": 1, "caption": "\\ud800"}]}'),
        ("latin.txt", b"\xe9t\xe9"),
        ("missing", None),
    ],
)
def test_a_file_without_prompts_is_one_line(tmp_path, name, text):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DeepCacheError, match="expected prompts") as caught:
        prompts_in(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [None, 3, b"prompts.txt"])
def test_what_is_no_path_is_one_line(path):
    with pytest.raises(DeepCacheError, match="and therefore a path"):
        prompts_in(path)

"""What a sample shows depends on its seed alone; prompts are read from files as their sources write them (exact)."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from deepcache.errors import DeepCacheError
from deepcache.models.captions import subject_of
from deepcache.models.embedded import WEIGHTS
from deepcache.sampling.conditions import (
    conditions_of,
    given_conditions,
    labels_of,
    prompts_in,
    prompts_of,
    random_labels_of,
)


class Labelled:
    class_embedder = SimpleNamespace(config=SimpleNamespace(num_classes=10))

    def __call__(self, class_labels=None, generator=None):
        pass


class Prompted:
    text_encoder = SimpleNamespace()

    def __init__(self, unet=WEIGHTS / "mini-sd" / "unet"):
        self.unet = SimpleNamespace(config={"_name_or_path": str(unet)})

    def __call__(self, prompt=None, generator=None):
        pass


class Unasked:
    def __call__(self, batch_size=1, generator=None):
        pass


class Repainted:
    text_encoder = None  # an optional part that was left out

    def __call__(self, image, prompt=None, generator=None):
        pass


LINES = (["a"], ["b"], ["a", "a"], ["ab"], ["a", "b"], ["b", "a"])
LABELLED, PROMPTED, UNASKED = Labelled(), Prompted(), Unasked()


def test_a_seed_has_the_same_prompt_in_any_block():
    assert prompts_of(range(5, 9)) == prompts_of(range(20))[5:9] == [str(subject_of(seed)) for seed in range(5, 9)]


def test_a_pipeline_is_asked_by_class_by_prompt_or_for_a_number_of_images():
    assert conditions_of(LABELLED)([3, 14]) == {"class_labels": labels_of([3, 14], 10)}
    assert conditions_of(PROMPTED)([3]) == {"prompt": prompts_of([3])}
    assert conditions_of(UNASKED)([3, 4, 5]) == {"batch_size": 3}


def test_random_classes_depend_on_the_seed_alone_and_not_on_its_noise():
    """All of 1000 classes come up about equally often: 50 of 50,000 each, with a standard deviation of 7."""
    labels = random_labels_of(range(50_000), 1000)
    assert random_labels_of(range(7, 19), 1000) == labels[7:19]
    counts = [labels.count(c) for c in range(1000)]
    assert min(counts) > 50 - 5 * 7
    assert max(counts) < 50 + 5 * 7
    assert labels[:8] == [838, 986, 689, 835, 128, 593, 488, 881]  # stored: classes of a seed must never change
    assert conditions_of(LABELLED, classes="random")([3, 14]) == {"class_labels": random_labels_of([3, 14], 10)}


def test_prompts_of_a_file_come_again_after_the_last():
    asked = conditions_of(PROMPTED, prompts=["a", "b", "c"])
    assert asked([0, 2, 3, 7]) == {"prompt": ["a", "c", "a", "b"]}


def test_rules_tell_conditions_apart():
    """Rules differ wherever any seed is asked for something else; lines of prompts are not joined without a mark."""
    some = [
        conditions_of(UNASKED),
        conditions_of(LABELLED),
        conditions_of(LABELLED, classes="random"),
        conditions_of(PROMPTED),
        *(conditions_of(PROMPTED, prompts=lines) for lines in LINES),
    ]
    assert len({found.rule for found in some}) == len(some)
    assert conditions_of(LABELLED, classes="balanced").rule == conditions_of(LABELLED).rule


def test_conditions_that_a_model_does_not_take_are_refused():
    for pipe in (PROMPTED, UNASKED):
        with pytest.raises(DeepCacheError, match=r"expected a model with classes, which (Prompted|Unasked) has not"):
            conditions_of(pipe, classes="random")
    with pytest.raises(DeepCacheError, match="expected a model with prompts"):
        conditions_of(LABELLED, prompts=["a"])
    with pytest.raises(DeepCacheError, match="expected classes to be balanced or random, got 'ballanced'"):
        conditions_of(LABELLED, classes="ballanced")


def test_captions_of_garments_are_for_the_embedded_models_alone():
    """Another model would be asked for garments without a word."""
    for place in ("", "/elsewhere/mini-sd/unet", WEIGHTS.parent / "unet"):
        with pytest.raises(
            DeepCacheError, match=r"expected prompts for Prompted, .*; pass prompts=\[\.\.\.\]"
        ) as caught:
            conditions_of(Prompted(place))
        assert "\n" not in str(caught.value)
        assert conditions_of(Prompted(place), prompts=["a"])([0, 1]) == {"prompt": ["a", "a"]}


@pytest.mark.parametrize("prompts", [[], [1], ["a", None]])
def test_prompts_are_texts(prompts):
    with pytest.raises(DeepCacheError, match="expected prompts as a list of texts, got"):
        conditions_of(PROMPTED, prompts=prompts)


def test_one_text_is_no_list_of_letters():
    with pytest.raises(DeepCacheError, match=r"as a list of texts, got 'a coat'; pass \["):
        conditions_of(PROMPTED, prompts="a coat")


def test_what_a_pipeline_does_not_take_is_not_given():
    with pytest.raises(DeepCacheError, match="takes prompts, classes or a batch size, got Repainted; pass conditions="):
        conditions_of(Repainted())
    with pytest.raises(DeepCacheError, match="expected a model with prompts, which Repainted has not"):
        conditions_of(Repainted(), prompts=["a"])


def test_prompts_and_conditions_together_are_refused():
    def conditions(seeds):
        return {"prompt": ["a"] * len(seeds)}

    assert given_conditions(PROMPTED, None, conditions) is conditions
    assert given_conditions(PROMPTED, ["b"], None)([0]) == {"prompt": ["b"]}
    with pytest.raises(DeepCacheError, match="either prompts or conditions"):
        given_conditions(PROMPTED, ["b"], conditions)


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

"""The captions' tokenizer cuts their words into few tokens and loses no other word; every instance is the same."""

from __future__ import annotations

import pytest
from transformers import CLIPTokenizer

from bench.training.tokens import LENGTH, table, tokenizer, vocabulary_size
from deepcache.models import captions


@pytest.fixture(scope="module")
def tokens():
    return tokenizer()


def spoken(tokens: CLIPTokenizer, text: str) -> str:
    return tokens.decode(tokens(text).input_ids, skip_special_tokens=True).strip()


def test_every_caption_fits_and_is_told_from_every_other(tokens):
    found = tokens([str(subject) for subject in captions.subjects()]).input_ids
    assert max(map(len, found)) <= LENGTH
    assert len({tuple(ids) for ids in found}) == len(found)


def test_a_captions_word_is_a_token_or_two(tokens):
    words = {word for subject in captions.subjects() for word in str(subject).split()} - {"t-shirt"}
    for word in words:
        assert len(tokens(word, add_special_tokens=False).input_ids) <= 2, word


def test_what_was_said_comes_back(tokens):
    for text in map(str, captions.subjects()):
        assert spoken(tokens, text).replace(" ", "") == text.replace(" ", "")


def test_an_unknown_word_falls_apart_and_is_not_lost(tokens):
    assert spoken(tokens, "zebra") == "zebra"
    assert len(tokens("zebra", add_special_tokens=False).input_ids) > 2
    assert tokens.unk_token_id not in tokens("zebra", add_special_tokens=False).input_ids


def test_a_prompt_begins_and_ends_and_is_cut_and_filled_to_its_length(tokens):
    found = tokens(["", "a red dress", "red " * 40], padding="max_length", truncation=True).input_ids
    assert {len(ids) for ids in found} == {LENGTH}
    assert {ids[0] for ids in found} == {tokens.bos_token_id}
    assert {ids[-1] for ids in found} == {tokens.eos_token_id}
    assert table(["", "a red dress"]).tolist() == found[:2]
    assert found[0] == [tokens.bos_token_id] + [tokens.eos_token_id] * (LENGTH - 1)


def test_the_end_is_the_highest_token_where_clip_looks_for_it(tokens):
    assert len(tokens) == vocabulary_size() == 585
    assert tokens.eos_token_id == len(tokens) - 1 == max(tokens.get_vocab().values())


def test_the_captions_have_the_same_tokens_whenever_a_tokenizer_is_made(tokens):
    # tokens that no caption uses may change places: the trainer of merges breaks ties as it likes
    texts = [str(subject) for subject in captions.subjects()]
    for _ in range(5):
        again = tokenizer()
        assert again(texts).input_ids == tokens(texts).input_ids
        assert sorted(again.get_vocab()) == sorted(tokens.get_vocab())


def test_a_stored_tokenizer_is_the_same(tokens, tmp_path):
    tokens.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [str(subject) for subject in captions.subjects()]
    assert again(texts).input_ids == tokens(texts).input_ids
    assert again.model_max_length == LENGTH

"""A tokenizer of CLIP's kind; its merges are trained on the captions, so that each word is a token or two."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from deepcache.models.captions import subjects
from deepcache.models.registry import MODELS

LENGTH = MODELS["mini-sd"].context_tokens  # start and end included


def tokenizer() -> CLIPTokenizer:
    """Return a tokenizer of 585 tokens: bytes, bytes that end a word, merges, start and end; other words are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(alphabet)
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


@cache
def vocabulary_size() -> int:
    """Return the number of tokens of every `tokenizer()`."""
    return len(tokenizer())


def table(texts: list[str]) -> Tensor:
    """Return the tokens of texts, each filled to `LENGTH`: (B, LENGTH) int64."""
    found: Tensor = tokenizer()(texts, padding="max_length", return_tensors="pt").input_ids
    return found


def _merges(alphabet: list[str]) -> list[tuple[str, str]]:
    words = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False)
    words.train_from_iterator(map(str, subjects()), trainer)
    with tempfile.TemporaryDirectory() as folder:
        words.save(f"{folder}/tokenizer.json")
        return [tuple(pair) for pair in json.loads(Path(folder, "tokenizer.json").read_text())["model"]["merges"]]

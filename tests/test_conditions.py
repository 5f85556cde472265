"""What a seed's sample is asked to show depends on the seed alone (exact laws)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from deepcache.errors import DeepCacheError
from deepcache.models.captions import subject_of
from deepcache.sampling import conditions_of, labels_of, prompts_of
from deepcache.sampling.conditions import Prompts, random_labels_of

LABELLED = SimpleNamespace(class_embedder=SimpleNamespace(config=SimpleNamespace(num_classes=10)))
PROMPTED = SimpleNamespace(text_encoder=None)


def test_a_seed_has_the_same_prompt_in_any_block():
    assert prompts_of(range(5, 9)) == prompts_of(range(20))[5:9] == [str(subject_of(seed)) for seed in range(5, 9)]


def test_a_pipeline_is_asked_by_class_by_prompt_or_for_a_number_of_images():
    assert conditions_of(LABELLED)([3, 14]) == {"class_labels": labels_of([3, 14], 10)}
    assert conditions_of(PROMPTED)([3]) == {"prompt": prompts_of([3])}
    assert conditions_of(SimpleNamespace())([3, 4, 5]) == {"batch_size": 3}


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
    """By all that changes what a seed is asked; lines are not run together."""
    some = [
        conditions_of(SimpleNamespace()),
        conditions_of(LABELLED),
        conditions_of(LABELLED, classes="random"),
        conditions_of(PROMPTED),
        *(Prompts(lines) for lines in [("a",), ("b",), ("a", "a"), ("ab",), ("a", "b"), ("b", "a")]),
    ]
    assert len({found.rule for found in some}) == len(some)
    assert conditions_of(LABELLED, classes="balanced").rule == conditions_of(LABELLED).rule


def test_conditions_that_a_model_does_not_take_are_refused():
    for pipe in (PROMPTED, SimpleNamespace()):
        with pytest.raises(DeepCacheError, match="expected a model with classes, which SimpleNamespace has not"):
            conditions_of(pipe, classes="random")
    with pytest.raises(DeepCacheError, match="expected a model with prompts"):
        conditions_of(LABELLED, prompts=["a"])

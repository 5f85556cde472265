"""The class or prompt of a sample depends on its seed alone (exact laws)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from deepcache.errors import DeepCacheError
from deepcache.models.captions import subject_of
from deepcache.models.embedded import WEIGHTS
from deepcache.sampling.conditions import (
    conditions_of,
    given_conditions,
    labels_of,
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
    with pytest.raises(DeepCacheError, match="as a list of texts, got 'a coat'; pass prompts="):
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

"""What a seed's sample is asked to show depends on the seed alone (exact laws)."""

from __future__ import annotations

from types import SimpleNamespace

from deepcache.models.captions import subject_of
from deepcache.sampling import conditions_of, labels_of, prompts_of


def test_a_seed_has_the_same_prompt_in_any_block():
    assert prompts_of(range(5, 9)) == prompts_of(range(20))[5:9] == [str(subject_of(seed)) for seed in range(5, 9)]


def test_a_pipeline_is_asked_by_class_by_prompt_or_for_a_number_of_images():
    classes = SimpleNamespace(class_embedder=SimpleNamespace(config=SimpleNamespace(num_classes=10)))
    assert conditions_of(classes)([3, 14]) == {"class_labels": labels_of([3, 14], 10)}
    assert conditions_of(SimpleNamespace(text_encoder=None))([3]) == {"prompt": prompts_of([3])}
    assert conditions_of(SimpleNamespace())([3, 4, 5]) == {"batch_size": 3}

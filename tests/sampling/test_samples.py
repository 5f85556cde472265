"""Samples: sample i depends on seed i alone (an exact law, up to what a batch does to float rounding)."""

from __future__ import annotations

import torch

from deepcache.sampling.conditions import labels_of
from deepcache.sampling.samples import sample
from tests.problems import pipeline

QUICK = {"progress": False, "num_inference_steps": 3, "guidance_scale": 1.5}


def test_classes_are_balanced_in_every_block_of_seeds():
    for first in (0, 7, 123):
        labels = labels_of(range(first, first + 40), 10)
        assert all(labels.count(c) == 4 for c in range(10))


def test_a_sample_depends_on_its_seed_alone():
    pipe = pipeline()
    together = sample(pipe, [3, 11, 5, 8], batch_size=4, **QUICK)
    assert together.shape[0] == 4
    for i, seed in enumerate([3, 11, 5, 8]):
        alone = sample(pipe, [seed], batch_size=1, **QUICK)
        # another batch size may choose another convolution kernel
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


def test_samples_come_in_the_order_of_the_seeds():
    pipe = pipeline()
    forward = sample(pipe, [1, 2, 3, 4], batch_size=2, **QUICK)
    backward = sample(pipe, [4, 3, 2, 1], batch_size=2, **QUICK)
    torch.testing.assert_close(forward, backward.flip(0), rtol=0, atol=1e-4)


def test_other_seeds_give_other_samples():
    pipe = pipeline()
    first, second = sample(pipe, [1, 11], batch_size=2, **QUICK)
    assert not torch.allclose(first, second, atol=1e-2)


def test_a_start_noise_is_disturbed_by_as_much_as_asked():
    pipe = pipeline()
    some = {**QUICK, "num_inference_steps": 2, "output_type": "latent"}
    start, hardly, much = (sample(pipe, [1, 2], batch_size=2, disturbed=by, **some) for by in (0, 1e-9, 0.1))
    torch.testing.assert_close(hardly, start, rtol=0, atol=1e-4)  # the noise that the pipeline draws, rounded
    assert not torch.allclose(much, start, rtol=0, atol=0.1)

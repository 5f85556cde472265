"""The embedded models load and do what their cards promise; unknown names are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import deepcache
from deepcache import models
from deepcache.errors import DeepCacheError
from deepcache.metrics import reference
from deepcache.metrics.clip_score import clip_scores, load_clip
from deepcache.metrics.extractors import MiniExtractor, extract
from deepcache.metrics.fidelity import as_asked
from deepcache.models.embedded import WEIGHTS
from deepcache.models.registry import EMBEDDED
from deepcache.sampling.conditions import labels_of, prompts_of
from deepcache.sampling.samples import sample
from deepcache.unets.diffusers.stages import nest
from tests.problems import pipeline


@pytest.fixture(scope="module")
def pipe():
    return models.load("mini-ldm")


@pytest.fixture(scope="module")
def extractor():
    return models.load_extractor()


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_embedded_model_gives_images(name):
    images = sample(models.load(name), range(2), batch_size=2, progress=False, num_inference_steps=2)
    assert images.shape == (2, 3, 32, 32)
    assert images.isfinite().all()
    assert 0 <= images.min() < images.max() <= 1


def test_mini_clip_scores_an_image():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (score,) = clip_scores(load_clip("mini-clip"), image, prompts_of([0]))
    assert 0 <= score <= 100  # and so finite


def test_mini_ldm_has_nine_skips_so_that_branches_mean_something(pipe):
    assert nest(pipe.unet).num_branches == 9


def test_mini_ldm_draws_what_is_asked_for(pipe, extractor):
    images = sample(pipe, range(50), batch_size=50, progress=False, num_inference_steps=8, guidance_scale=1.5)
    # the card promises 0.85 of 1,000 samples over 100 steps; four standard errors of 50 samples are 0.2
    assert as_asked(extract(MiniExtractor(extractor), images), labels_of(range(50), 10)) >= 0.65


def test_caching_an_embedded_model_changes_little_at_interval_two(pipe):
    arguments = {"batch_size": 4, "progress": False, "num_inference_steps": 20, "guidance_scale": 1.5}
    uncached = sample(pipe, range(4), **arguments)
    with deepcache.cached(pipe, interval=2, branch=0) as cache:
        cached = sample(pipe, range(4), **arguments)
    assert cache.generations[0].full_steps == tuple(range(0, 20, 2))
    assert 0 < (cached - uncached).square().mean() < 10**-2  # 20 dB: the same images


@pytest.mark.parametrize(
    ("name", "score", "at_least"),
    [
        ("mini-ldm", "autoencoder_psnr_db", 22),
        ("mini-ldm", "samples_as_asked", 0.85),
        ("mini-sd", "garment_as_asked", 0.75),
        ("mini-sd", "colour_as_asked", 0.85),
        ("mini-clip", "right_of_50", 0.80),
        ("mini-features", "garment_accuracy", 0.90),
        ("mini-features", "colour_accuracy", 0.97),
    ],
)
def test_the_cards_scores_are_as_good_as_they_must_be(name, score, at_least):
    # stored values, written by `python -m bench.training cards`
    assert json.loads((WEIGHTS / name / "scores.json").read_text())[score] >= at_least


def test_the_stored_features_are_a_sample_of_what_the_stored_moments_are_of(extractor):
    stored = reference.load()
    assert stored.pooled.mean.shape == (extractor.config.widths[-1],)
    assert stored.features.shape == (reference.NUM_FEATURES, extractor.config.widths[-1])
    standard_errors = np.sqrt(stored.pooled.covariance.diagonal() / reference.NUM_FEATURES)
    assert (np.abs(stored.features.mean(axis=0) - stored.pooled.mean) <= 4 * standard_errors).all()


def test_an_unknown_model_is_one_clear_line():
    with pytest.raises(DeepCacheError, match=r"expected a model out of mini-ldm, .*; got 'maxi-ldm'"):
        models.load("maxi-ldm")


@pytest.mark.parametrize("labels", [[], [10], [-1, 3]])
def test_class_labels_out_of_range_are_refused(pipe, labels):
    with pytest.raises(DeepCacheError, match=r"expected class labels in 0\.\.9"):
        pipe(class_labels=labels)


def test_codes_in_half_precision_are_those_of_float32() -> None:
    """In bfloat16, a part of the latents would get another code (the last assertion, a test of the test)."""
    from diffusers import VQModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vqvae = VQModel(
            in_channels=3, block_out_channels=(8,), norm_num_groups=4, latent_channels=3, num_vq_embeddings=2048
        )
        vqvae.quantize.embedding.weight.data.uniform_(-2, 2)
        latents = torch.randn(4, 3, 16, 16).bfloat16()
    pipe = pipeline()
    pipe.vqvae = vqvae.bfloat16()
    kept = []
    vqvae.post_quant_conv.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    images = pipe.decode_latents(latents)
    codes = vqvae.quantize.embedding.weight.float()
    latents = latents / vqvae.config.scaling_factor
    flat = latents.float().permute(0, 2, 3, 1).reshape(-1, 3)
    expected = codes[torch.cdist(flat, codes).argmin(1)].reshape(4, 16, 16, 3).permute(0, 3, 1, 2)
    assert torch.equal(kept[0].float(), expected)
    assert images.isfinite().all()
    vqvae.decode(latents)
    assert not torch.equal(kept[1].float(), expected)

"""Schedulers by name, and DDIM on quadratic timesteps (oracles: diffusers' DDIM; the formula)."""

from __future__ import annotations

from inspect import signature
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch.testing import assert_close

from deepcache.errors import DeepCacheError
from deepcache.sampling.schedulers import SCHEDULERS, STOCHASTIC, scheduler

CONFIG = DDIMScheduler(clip_sample=False, set_alpha_to_one=True).config


def walk(found, timesteps, **own):
    """A generation with a made-up network: noise that depends on sample and timestep; `own` goes to the scheduler."""
    sample = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in timesteps:
        noise = torch.sin(3 * sample + t / 100)
        sample = found.step(noise, t, sample, **own).prev_sample
    return sample


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_walks_with_the_noise_schedule_it_was_given(name):
    found = scheduler(name, CONFIG)
    found.set_timesteps(10)
    assert found.config.beta_start == CONFIG.beta_start
    assert walk(found, found.timesteps).isfinite().all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_stochastic_solvers_alone_draw_noise_and_from_the_given_generator(name):
    def end(seed: int) -> torch.Tensor:
        found = scheduler(name, CONFIG)
        found.set_timesteps(10)
        takes = "generator" in signature(found.step).parameters
        return walk(found, found.timesteps, **{"generator": torch.Generator().manual_seed(seed)} if takes else {})

    assert torch.equal(end(1), end(1))
    assert torch.equal(end(1), end(2)) is (name not in STOCHASTIC)


def test_the_ancestral_steps_of_euler_are_those_of_ddpm():
    """Both are DDIM with all of its noise, in two parametrisations: the same draws end in the same sample."""
    ends = []
    for name in ("ddpm", "euler-ancestral"):
        found = scheduler(name, {**CONFIG, "timestep_spacing": "leading", "steps_offset": 1})
        found.set_timesteps(10)
        generator = torch.Generator().manual_seed(1)
        sample = torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64) * float(found.init_noise_sigma)
        for t in found.timesteps:
            noise = torch.sin(3 * found.scale_model_input(sample, t) + float(t) / 100)
            sample = found.step(noise, t, sample, generator=generator).prev_sample
        ends.append(sample)
    # float32 sigmas against float32 products of alphas
    assert_close(*ends, rtol=1e-3, atol=1e-3)


def test_ddim_on_quadratic_timesteps_is_ddim():
    """Oracle: the DDIM update written out, from timestep to timestep."""
    found = scheduler("ddim-quadratic", CONFIG)
    found.set_timesteps(12)
    alphas = DDIMScheduler.from_config(CONFIG).alphas_cumprod.double()
    sample = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = [*found.timesteps.tolist(), None]
    for t, following in pairwise(places):
        noise = torch.sin(3 * sample + t / 100)
        clean = (sample - (1 - alphas[t]).sqrt() * noise) / alphas[t].sqrt()
        alpha = alphas[following] if following is not None else torch.tensor(1.0)
        sample = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    # float32 sigmas against float64 ones
    assert_close(walk(found, found.timesteps), sample, rtol=1e-4, atol=1e-4)


def test_quadratic_timesteps_are_the_squares_of_even_places():
    found = scheduler("ddim-quadratic", CONFIG)
    found.set_timesteps(100)
    expected = (np.linspace(0, 800**0.5, 100) ** 2).astype(int)[::-1]
    assert found.timesteps.tolist() == expected.tolist()


def test_an_unknown_scheduler_is_refused_by_name():
    with pytest.raises(DeepCacheError, match="expected schedulers out of ddim"):
        scheduler("unipc", CONFIG)


def test_ddim_clips_nothing_whatever_the_model_s_own_configuration_says():
    without = {key: value for key, value in CONFIG.items() if key != "clip_sample"}  # as PLMS's, of a latent model
    for config in (without, {**without, "clip_sample": True}):
        assert scheduler("ddim", config).config.clip_sample is False

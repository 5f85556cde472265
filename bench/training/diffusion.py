"""What a diffusion model trains on: noise, or velocity, to be told from a noisy sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from deepcache.errors import DeepCacheError


def diffusion_loss(
    network: Callable[[Tensor, Tensor], Tensor], noise_schedule: Any, clean: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared error of what `network` predicts, at a random timestep each sample.

    Args:
        network: of noisy samples and timesteps (B,); runs in bfloat16 where torch's autocast says so.
        noise_schedule: a diffusers scheduler, whose `prediction_type` says what is predicted.
        clean: (B, ...) samples.
        generator: draws the noise, then the timesteps.

    Raises:
        DeepCacheError: a `prediction_type` other than "epsilon" and "v_prediction".

    References: Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
    """
    noise = torch.randn(clean.shape, generator=generator)
    t = torch.randint(noise_schedule.config.num_train_timesteps, (len(clean),), generator=generator)
    target = _target(noise_schedule, clean, noise, t)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = network(noise_schedule.add_noise(clean, noise, t), t)
    return mse_loss(predicted.float(), target)


def _target(noise_schedule: Any, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    kind = noise_schedule.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        velocity: Tensor = noise_schedule.get_velocity(clean, noise, t)
        return velocity
    raise DeepCacheError(f"expected prediction_type epsilon or v_prediction, got {kind!r}; give another scheduler")

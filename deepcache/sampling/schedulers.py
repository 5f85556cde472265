"""Solvers by name, each made from a model's own noise schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)

from deepcache.errors import DeepCacheError, first_line
from deepcache.plan import MOST_STEPS, require_whole


class QuadraticDDIMScheduler(DPMSolverMultistepScheduler):  # type: ignore[misc]
    """DDIM whose timesteps are evenly spaced in their square root, so that they repeat near 0, as for CIFAR-10.

    DPM-Solver++ of order 1 is DDIM without clipping, on any timesteps.

    References: Denoising Diffusion Implicit Models (Song et al., 2021), appendix D.2, https://arxiv.org/abs/2010.02502
    """

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        end = 0.8 * self.config.num_train_timesteps  # where the original's quadratic schedule starts
        timesteps = (np.linspace(0, end**0.5, num_inference_steps) ** 2).astype(int)
        super().set_timesteps(timesteps=timesteps[::-1].tolist(), device=device)


class PNDM(PNDMScheduler):  # type: ignore[misc]
    """diffusers' PNDM for pipelines on pixels, which hand every scheduler a generator; PNDM draws no noise."""

    def step(self, *args: Any, generator: Any = None, **kwargs: Any) -> Any:  # noqa: ARG002 (handed over, not used)
        return super().step(*args, **kwargs)


STOCHASTIC = ("ddpm", "euler-ancestral")  # solvers that add noise on every step
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    # the paper's DDIM clips neither latents nor pixels
    "ddim": lambda config: DDIMScheduler.from_config(config, clip_sample=False),
    "ddpm": lambda config: DDPMScheduler.from_config(config, clip_sample=False),
    "ddim-quadratic": lambda config: QuadraticDDIMScheduler.from_config(config, solver_order=1),
    "plms": lambda config: PNDM.from_config(config, skip_prk_steps=True),
    "pndm": lambda config: PNDM.from_config(config, skip_prk_steps=False),
    "euler": EulerDiscreteScheduler.from_config,
    "euler-ancestral": EulerAncestralDiscreteScheduler.from_config,
    "heun": HeunDiscreteScheduler.from_config,
    "dpm-solver++": lambda config: DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++"),
}


def scheduler(name: str, config: Any) -> Any:
    """Return the scheduler of a name, a key of `SCHEDULERS`, with the noise schedule of another one's configuration."""
    if name not in SCHEDULERS:
        raise DeepCacheError(f"expected schedulers out of {', '.join(SCHEDULERS)}, got {name!r}")
    # with that key, diffusers would replace a value that equals one class's default by the other class's default
    return SCHEDULERS[name]({key: value for key, value in config.items() if key != "_use_default_values"})


def num_calls(solver: Any, num_steps: int, name: str) -> int:
    """Set a solver to a number of steps, and return a generation's U-Net calls; errors call the solver by `name`."""
    require_whole("num_steps", num_steps, at_least=1, at_most=MOST_STEPS)
    try:
        solver.set_timesteps(num_steps)
    except (ValueError, IndexError) as error:
        reason = first_line(error)
        raise DeepCacheError(f"expected a number of steps that {name} can do, got {num_steps} ({reason})") from error
    return len(solver.timesteps)

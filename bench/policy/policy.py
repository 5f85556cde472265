"""The trained policy, and its success over episodes that run side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from bench.policy.environment import HORIZON, MOST_STEPS, OBSERVATION, Around, Array
from bench.policy.network import PolicyUNet

WEIGHTS = Path(__file__).parent / "policy.safetensors"
NUM_ACTIONS = 2
EXECUTED = 8  # actions of a horizon that are carried out before the next one is sampled


def noise_schedule() -> DDIMScheduler:
    """Return the schedule of Diffusion Policy: a hundred steps, cosine."""
    return DDIMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample=True)


@dataclass
class Policy:
    """A network and a scheduler, as robots' policies have them; `deepcache.cached` takes a policy as its owner."""

    unet: PolicyUNet
    noise_scheduler: DDIMScheduler
    num_steps: int = 100

    @torch.no_grad()
    def act(self, observed: Tensor, noise: Tensor) -> Tensor:
        """Sample the next `HORIZON` actions, (B, 16, 2), for observations (B, 6), from noise of the same shape."""
        self.noise_scheduler.set_timesteps(self.num_steps)
        sample = noise
        for t in self.noise_scheduler.timesteps:
            sample = self.noise_scheduler.step(self.unet(sample, t, observed), t, sample).prev_sample
        return sample


def load() -> Policy:
    """Return the trained policy."""
    unet = PolicyUNet(NUM_ACTIONS, OBSERVATION)
    unet.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return Policy(unet.eval().requires_grad_(requires_grad=False), noise_schedule())


def export(unet: PolicyUNet) -> None:
    """Write the weights in half precision."""
    save_file({name: value.half().contiguous() for name, value in unet.state_dict().items()}, WEIGHTS)


def begun(seeds: range) -> tuple[list[Around], Array]:
    """Return the environments at the beginning of their episodes, and what is observed there, (B, 6)."""
    envs = [Around() for _ in seeds]
    return envs, np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)])


def drawn(generators: Sequence[torch.Generator]) -> Tensor:
    """Return noise for the next actions of each episode, (B, 16, 2)."""
    return torch.stack([torch.randn(HORIZON, NUM_ACTIONS, generator=each) for each in generators])


def seeded(seeds: range) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def successes(policy: Policy, seeds: range) -> list[bool]:
    """Return for each seed whether its episode reaches the goal; all episodes run side by side."""
    (envs, observed), generators = begun(seeds), seeded(seeds)
    found, is_over = [False] * len(envs), [False] * len(envs)
    for _ in tqdm(range(0, MOST_STEPS, EXECUTED), desc="episodes", unit="chunk", disable=None, leave=False):
        actions = policy.act(torch.from_numpy(observed), drawn(generators)).numpy()
        for number, env in enumerate(envs):
            for action in actions[number, :EXECUTED]:
                if not is_over[number]:
                    observed[number], reward, ended, cut, _ = env.step(action)
                    found[number], is_over[number] = reward > 0, ended or cut
    return found

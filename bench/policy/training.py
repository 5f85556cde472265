"""Train the policy on its expert's episodes: `python -m bench.policy.training`; some minutes on two cores."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from bench.policy.environment import FIRST_SEED, OBSERVATION, demonstrations
from bench.policy.network import PolicyUNet
from bench.policy.policy import NUM_ACTIONS, Policy, export, noise_schedule, successes
from bench.training.trainer import Recipe, diffusion_loss, seeded, train

NUM_EPISODES = 2_000  # of demonstrations
BATCH = 256
RECIPE = Recipe(num_steps=6_000, lr=1e-3, ema=0.999)


def main(runs: Path) -> None:
    observed, actions = map(torch.from_numpy, demonstrations(NUM_EPISODES))
    schedule = noise_schedule()

    def loss(unet: PolicyUNet, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(observed), (BATCH,), generator=generator)
        return diffusion_loss(lambda x, t: unet(x, t, observed[rows]), schedule, actions[rows], generator)

    with seeded():
        unet = train(PolicyUNet(NUM_ACTIONS, OBSERVATION), loss, RECIPE, runs / "policy")
    export(unet)
    found = successes(Policy(unet, schedule), range(FIRST_SEED, FIRST_SEED + 200))
    print(f"success in {sum(found)} of {len(found)} episodes")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))

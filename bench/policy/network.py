"""The policy's network: a U-Net over the actions of a horizon, conditioned on an observation and a timestep.

Each residual block is scaled and shifted by the condition, as in Diffusion Policy (Chi et al., 2023,
https://arxiv.org/abs/2303.04137). Its class is no class of diffusers: deepcache watches it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

WIDTHS = (16, 32, 64)
CONDITION = 64


class Block(nn.Module):
    """Two convolutions over time around a scale and a shift."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(channels, out, 5, padding=2), nn.GroupNorm(8, out), nn.Mish())
        self.film = nn.Sequential(nn.Mish(), nn.Linear(2 * CONDITION, 2 * out))
        self.second = nn.Sequential(nn.Conv1d(out, out, 5, padding=2), nn.GroupNorm(8, out), nn.Mish())
        self.skip = nn.Conv1d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[..., None].chunk(2, dim=1)
        return self.second(self.first(x) * (1 + scale) + shift) + self.skip(x)


class PolicyUNet(nn.Module):
    """Predicts the noise in the actions of a horizon."""

    def __init__(self, num_actions: int, num_observed: int) -> None:
        super().__init__()
        a, b, c = WIDTHS
        self.observe = nn.Sequential(nn.Linear(num_observed, CONDITION), nn.Mish(), nn.Linear(CONDITION, CONDITION))
        self.time = nn.Sequential(nn.Linear(CONDITION, CONDITION), nn.Mish(), nn.Linear(CONDITION, CONDITION))
        self.down = nn.ModuleList(
            [Block(num_actions, a), Block(a, a), Block(a, b), Block(b, b), Block(b, c), Block(c, c)]
        )
        self.shorter = nn.ModuleList([nn.Conv1d(a, a, 3, 2, 1), nn.Conv1d(b, b, 3, 2, 1)])
        self.mid = nn.ModuleList([Block(c, c), Block(c, c)])
        self.longer = nn.ModuleList([nn.ConvTranspose1d(c, b, 4, 2, 1), nn.ConvTranspose1d(b, a, 4, 2, 1)])
        self.up = nn.ModuleList([Block(b + b, b), Block(b, b), Block(a + a, a), Block(a, a)])
        self.out = nn.Sequential(
            nn.Conv1d(a, a, 5, padding=2), nn.GroupNorm(8, a), nn.Mish(), nn.Conv1d(a, num_actions, 1)
        )

    def forward(self, sample: Tensor, timestep: Tensor, observed: Tensor) -> Tensor:
        """Return the noise, (B, T, A), in actions (B, T, A) at a timestep () or (B,), for observations (B, O)."""
        condition = torch.cat([self.time(_waves(timestep.expand(len(sample)))), self.observe(observed)], dim=1)
        x, skips = sample.mT, []
        for level in range(3):
            for block in self.down[2 * level : 2 * level + 2]:
                x = block(x, condition)
            if level < len(self.shorter):
                skips.append(x)
                x = self.shorter[level](x)
        for block in self.mid:
            x = block(x, condition)
        for level in range(2):
            x = torch.cat([self.longer[level](x), skips.pop()], dim=1)
            for block in self.up[2 * level : 2 * level + 2]:
                x = block(x, condition)
        return self.out(x).mT


def _waves(timestep: Tensor) -> Tensor:
    half = CONDITION // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=timestep.device) / (half - 1))
    angles = timestep[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)

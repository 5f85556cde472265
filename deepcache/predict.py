"""The feature of a shallow step, predicted from those of the last full steps.

The polynomial of degree k through the last k + 1 features over the timestep, by Neville's scheme:

    P_i = f_i,   P_{i..j}(t) = lerp(P_{i+1..j}(t), P_{i..j-1}(t), (t - t_j) / (t_i - t_j))

Order 0 is the newest feature, as in the paper. It is exact for polynomials of degree k on uneven nodes. Nothing here
reads a value back from the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import combinations, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from deepcache.views import Feature

Coordinate = float | Tensor  # of a device: 0-d, or (B, 1, 1, 1) where the samples' timesteps differ


class Node(NamedTuple):
    """A full step: its number, its timestep and its feature."""

    step: int
    timestep: Coordinate
    feature: Feature


def coordinate(timestep: Tensor | float) -> Coordinate:
    """A timestep as the U-Net is given it, as a number where the host knows it."""
    if not isinstance(timestep, Tensor):
        return float(timestep)
    if timestep.numel() > 1 and any(timestep.stride()):  # one a sample
        return timestep.reshape(-1, 1, 1, 1).clone()  # its own memory, so that the scheduler's can go
    first = timestep.reshape(-1)[0]
    return float(first) if first.device.type == "cpu" else first.clone()


def predicted(nodes: Sequence[Node], step: int, timestep: Tensor | float) -> Feature:
    """The feature at a step.

    Args:
        nodes: the last full steps, newest first; as many as the order, and one.
        step: the number of this step; the coordinate instead of the timestep where those of the nodes repeat.
        timestep: as the U-Net is given it.

    Returns:
        The feature, of the nodes' shapes and types.

    References:
        Neville, Iterative interpolation (1934). Against reuse: From Reusing to Forecasting: Accelerating Diffusion
        Models with TaylorSeers (Liu et al., 2025), https://arxiv.org/abs/2503.06923
    """
    if len(nodes) == 1:
        return nodes[0].feature
    at, *places = _coordinates(nodes, step, coordinate(timestep))
    return tuple(_neville(features, places, at) for features in zip(*(node.feature for node in nodes), strict=True))


def _neville(features: Sequence[Tensor], places: Sequence[Coordinate], at: Coordinate) -> Tensor:
    column = list(features)
    for reach in range(1, len(column)):
        column = [
            _lerp(far, near, (at - places[i + reach]) / (places[i] - places[i + reach]))
            for i, (near, far) in enumerate(pairwise(column))
        ]
    return column[0]


def _lerp(start: Tensor, end: Tensor, weight: Coordinate) -> Tensor:
    if isinstance(weight, Tensor):
        weight = weight.to(start.dtype)
        if weight.numel() > 1:  # a video's frames lie within its sample
            weight = weight.repeat_interleave(start.shape[0] // weight.numel(), dim=0)
    return torch.lerp(start, end, weight)


def _coordinates(nodes: Sequence[Node], step: int, timestep: Coordinate) -> list[Coordinate]:
    """Of the step and its nodes: timesteps, or steps where a timestep is that of two nodes."""
    steps = [step, *(node.step for node in nodes)]
    timesteps = [timestep, *(node.timestep for node in nodes)]
    same = [a == b for a, b in combinations(timesteps[1:], 2)]
    if any(isinstance(pair, Tensor) for pair in same):
        repeats = reduce(torch.logical_or, (torch.as_tensor(pair) for pair in same))
        return [torch.where(repeats, float(s), t) for s, t in zip(steps, timesteps, strict=True)]
    return list(map(float, steps)) if any(same) else timesteps

"""Predict the feature of a shallow step from the features of the last full steps.

The prediction of order k is the polynomial of degree k over the timestep t through the last k + 1 features f_i, which
Neville's scheme evaluates:

    P_i = f_i,   P_{i..j}(t) = lerp(P_{i+1..j}(t), P_{i..j-1}(t), (t - t_j) / (t_i - t_j))

Order 0 is the newest feature, as in the paper. The prediction is exact for features that are polynomials of degree k,
also on uneven timesteps. Nothing here reads a value back from the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, pairwise
from typing import NamedTuple, Self

import torch
from torch import Tensor

from deepcache.unets.family import Feature

Coordinate = float | Tensor  # a tensor on a device is 0-d, or (B, 1, 1, 1) if the samples' timesteps differ


class Node(NamedTuple):
    """A full step: its number, its timestep and its feature."""

    step: int
    timestep: Coordinate
    feature: Feature


def coordinate(timestep: Tensor | float) -> Coordinate:
    """Return the timestep of a U-Net call as a coordinate, which is a number if the host knows the value."""
    if not isinstance(timestep, Tensor):
        return float(timestep)
    if timestep.numel() > 1 and any(timestep.stride()):  # a timestep for each sample
        return timestep.reshape(-1, 1, 1, 1).clone()  # a copy does not keep the scheduler's memory alive
    first = timestep.reshape(-1)[0]
    return float(first) if first.device.type == "cpu" else first.clone()


@dataclass(frozen=True, eq=False)
class Polynomial:
    """The polynomial through the features of the last full steps, with all that stays the same until the next one.

    References:
        Neville, Iterative interpolation (1934). Against reuse: From Reusing to Forecasting: Accelerating Diffusion
        Models with TaylorSeers (Liu et al., 2025), https://arxiv.org/abs/2503.06923
    """

    nodes: tuple[Node, ...]  # the newest first; their number is the order plus one
    by_step: bool | Tensor  # whether the step is the coordinate, because two nodes have the same timestep
    places: tuple[Coordinate, ...]  # the coordinate of each node
    gaps: dict[tuple[int, int], Coordinate]  # the differences between the places of two nodes

    @classmethod
    def through(cls, nodes: Sequence[Node]) -> Self:
        """Return the polynomial of degree `len(nodes)` - 1 through the nodes, the newest first."""
        same = [one.timestep == other.timestep for one, other in combinations(nodes, 2)]
        on_device = any(isinstance(each, Tensor) for each in same)
        by_step = reduce(torch.logical_or, map(torch.as_tensor, same)) if on_device else any(same)
        places = tuple(_choice(by_step, node.step, node.timestep) for node in nodes)
        gaps = {(i, j): places[i] - places[j] for i, j in combinations(range(len(places)), 2)}
        return cls(tuple(nodes), by_step, places, gaps)

    def __call__(self, step: int, timestep: Tensor | float) -> Feature:
        """Return the predicted feature at a step and its timestep, with the shapes and types of the nodes' features."""
        if len(self.nodes) == 1:
            return self.nodes[0].feature
        at = _choice(self.by_step, step, coordinate(timestep))
        return tuple(self._neville(features, at) for features in zip(*(n.feature for n in self.nodes), strict=True))

    def _neville(self, features: Sequence[Tensor], at: Coordinate) -> Tensor:
        column = list(features)
        for reach in range(1, len(column)):
            column = [
                _lerp(far, near, (at - self.places[i + reach]) / self.gaps[i, i + reach])
                for i, (near, far) in enumerate(pairwise(column))
            ]
        return column[0]


def _lerp(start: Tensor, end: Tensor, weight: Coordinate) -> Tensor:
    if isinstance(weight, Tensor):
        weight = weight.to(start.dtype)
        if weight.numel() > 1:  # the frames of a video follow each other within a sample
            weight = weight.repeat_interleave(start.shape[0] // weight.numel(), dim=0)
    return torch.lerp(start, end, weight)


def _choice(by_step: bool | Tensor, step: int, timestep: Coordinate) -> Coordinate:  # noqa: FBT001 (a value, not an option)
    if isinstance(by_step, Tensor):
        return torch.where(by_step, float(step), timestep)
    return float(step) if by_step else timestep

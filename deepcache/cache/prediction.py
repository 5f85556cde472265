"""The feature of a shallow step, predicted from those of the last full steps.

The polynomial of degree k through the last k + 1 features over the timestep, by Neville's scheme:

    P_i = f_i,   P_{i..j}(t) = lerp(P_{i+1..j}(t), P_{i..j-1}(t), (t - t_j) / (t_i - t_j))

Order 0 is the newest feature, as in the paper. It is exact for polynomials of degree k on uneven nodes. Nothing here
reads a value back from the device.
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


@dataclass(frozen=True, eq=False)
class Polynomial:
    """Through the features of the last full steps. What stays until the next one is worked out once, on the device.

    Attributes:
        nodes: the last full steps, newest first; as many as the order, and one.
        by_step: whether steps are the coordinate instead of timesteps: where those of two nodes are the same.
        places: of the nodes, in the coordinate.
        gaps: between two places, by their positions.

    References:
        Neville, Iterative interpolation (1934). Against reuse: From Reusing to Forecasting: Accelerating Diffusion
        Models with TaylorSeers (Liu et al., 2025), https://arxiv.org/abs/2503.06923
    """

    nodes: tuple[Node, ...]
    by_step: bool | Tensor
    places: tuple[Coordinate, ...]
    gaps: dict[tuple[int, int], Coordinate]

    @classmethod
    def through(cls, nodes: Sequence[Node]) -> Self:
        """The polynomial of degree `len(nodes)` - 1."""
        same = [one.timestep == other.timestep for one, other in combinations(nodes, 2)]
        by_step: bool | Tensor = any(same) if not any(isinstance(each, Tensor) for each in same) else _any(same)
        places = tuple(_choice(by_step, node.step, node.timestep) for node in nodes)
        gaps = {(i, j): places[i] - places[j] for i, j in combinations(range(len(places)), 2)}
        return cls(tuple(nodes), by_step, places, gaps)

    def __call__(self, step: int, timestep: Tensor | float) -> Feature:
        """The feature at a step, of the nodes' shapes and types.

        Args:
            step: its number.
            timestep: as the U-Net is given it.
        """
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
        if weight.numel() > 1:  # a video's frames lie within its sample
            weight = weight.repeat_interleave(start.shape[0] // weight.numel(), dim=0)
    return torch.lerp(start, end, weight)


def _any(flags: Sequence[bool | Tensor]) -> Tensor:
    return reduce(torch.logical_or, (torch.as_tensor(flag) for flag in flags))


def _choice(by_step: bool | Tensor, step: int, timestep: Coordinate) -> Coordinate:  # noqa: FBT001 (a value, not an option)
    if isinstance(by_step, Tensor):
        return torch.where(by_step, float(step), timestep)
    return float(step) if by_step else timestep

"""Predict a feature, or a U-Net's output, from those of the last steps that computed it.

The prediction of order k is the polynomial of degree k over the timestep t through the last k + 1 features f_i, which
Neville's scheme evaluates:

    P_i = f_i,   P_{i..j}(t) = lerp(P_{i+1..j}(t), P_{i..j-1}(t), (t - t_j) / (t_i - t_j))

Order 0 is the newest feature, as in the paper. The prediction is exact for features that are polynomials of degree k,
also on uneven timesteps. Nothing here reads a value back from the device.

Guidance of strength w multiplies an error of the difference between the conditional and the unconditional half by w,
and the longer the interval, the less a polynomial says of its end. So order "auto" goes by the reach: w times the share
of all steps that lies between the two newest nodes. The order is 2 up to a reach of 0.2, and 1 up to 0.45. Beyond that,
the mean of the halves and their difference are extrapolated only where order 1 would have predicted the newest node
clearly better than order 0 did, for each sample; else they are reused. Where there is no such proof yet, the mean is
extrapolated if the interval is short. Noise that a solver adds on every step is in the features, too, and a polynomial
extrapolates it: there the order is 0. docs/prediction.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import reduce
from itertools import combinations, pairwise
from math import inf
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from deepcache.plan import Order
from deepcache.unets.family import Feature

REACHES = ((2, 0.2), (1, 0.45))  # an order, and the largest reach at which "auto" takes it untried
SHORT = 0.1  # the largest share of the steps between two nodes over which a mean is extrapolated untried
_ROUNDING = 1e-9  # of a reach that equals its limit
PROOF = 0.75  # the largest ratio of the errors of order 1 and order 0 at the newest node that proves order 1
Errors = tuple[Tensor, Tensor]  # (B, ...) each, of the predictions of order 0 and of order 1
Coordinate = float | Tensor  # a tensor on a device is 0-d, or (B, 1, 1, 1) if the samples' timesteps differ


class Node(NamedTuple):
    """A step that computed a feature, or an output that is predicted in the same way: its number and its timestep."""

    step: int
    timestep: Coordinate
    feature: Feature


def coordinate(timestep: Tensor | float) -> Coordinate:
    """Return the timestep of a U-Net call as a coordinate, which is a number if the host knows the value."""
    if not isinstance(timestep, Tensor):
        return float(timestep)
    on_cpu = timestep.device.type == "cpu"
    if timestep.numel() > 1 and any(timestep.stride()) and not (on_cpu and (timestep == timestep.reshape(-1)[0]).all()):
        # a timestep for each sample
        return timestep.reshape(-1, 1, 1, 1).clone()  # a copy does not keep the scheduler's memory alive
    first = timestep.reshape(-1)[0]
    return float(first) if on_cpu else first.clone()


class Predictor(Protocol):
    """Predicts a feature from nodes, which it keeps."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The steps that are kept, the newest first."""

    def __call__(self, step: int, timestep: Tensor | float) -> Feature:
        """Return the predicted feature at a step and its timestep, with the shapes and types of the nodes' features."""


class Halves(Enum):
    """Where the conditional and the unconditional half of guidance are."""

    NONE = "no guidance"
    TOGETHER = "in one call, whose batch begins with one half and ends with the other"
    APART = "in calls of their own"
    HIDDEN = "in one call, whose tensors do not begin with the batch"


@dataclass(frozen=True)
class Setting:
    """A setting decides which order "auto" takes: guidance, the number of all steps, and where the halves are."""

    guidance: float | None = 1.0  # 1 without guidance; None if unknown
    num_steps: int | None = None  # None if unknown
    halves: Halves = Halves.NONE
    adds_noise: bool = False  # whether the solver adds noise on every step

    def share(self, nodes: Sequence[Node]) -> float:
        """Return the share of all steps that lies between the two newest nodes; infinity if it is unknown."""
        return inf if self.num_steps is None else (nodes[0].step - nodes[1].step) / self.num_steps

    def reach(self, nodes: Sequence[Node]) -> float:
        return inf if self.guidance is None else self.guidance * self.share(nodes)


def predictor(nodes: Sequence[Node], order: Order, setting: Setting) -> Predictor:
    """Return what predicts from the last steps that computed a feature.

    Args:
        nodes: at least one, the newest first.
        order: the order of the prediction.
        setting: what order "auto" goes by.
    """
    if order != "auto":
        return Polynomial.through(nodes[: order + 1])
    if len(nodes) == 1 or setting.adds_noise:
        return Polynomial.through(nodes[:1])
    reach = setting.reach(nodes)
    for highest, limit in REACHES:
        if reach <= limit + _ROUNDING:
            return Polynomial.through(nodes[: highest + 1])
    return Proven.by(nodes, setting)


@dataclass(frozen=True, eq=False)
class Polynomial:
    """The polynomial through the features of the last full steps, with all that stays the same until the next one.

    References:
        Neville, Iterative interpolation (1934). Against reuse: From Reusing to Forecasting: Accelerating Diffusion
        Models with TaylorSeers (Liu et al., 2025), https://arxiv.org/abs/2503.06923
    """

    nodes: tuple[Node, ...]  # the newest first; their number is the order plus one
    by_step: bool | Tensor  # True: the step is the coordinate, as timesteps repeat or do not fit the features
    places: tuple[Coordinate, ...]  # the coordinate of each node
    gaps: dict[tuple[int, int], Coordinate]  # the differences between the places of two nodes

    @classmethod
    def through(cls, nodes: Sequence[Node]) -> Self:
        """Return the polynomial of degree `len(nodes)` - 1 through the nodes, the newest first."""
        same = [one.timestep == other.timestep for one, other in combinations(nodes, 2)]
        by_step: bool | Tensor
        if _are_unmatched(nodes):
            by_step = True
        elif any(isinstance(each, Tensor) for each in same):
            by_step = reduce(torch.logical_or, map(torch.as_tensor, same))
        else:
            by_step = any(same)
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


@dataclass(frozen=True, eq=False)
class Proven:
    """Order 1 for those samples and parts for which the newest node has proved it, and order 0 for the others.

    With guidance, the parts are the mean of the conditional and the unconditional half, and their difference. So a half
    moves by its own extrapolated change times a share, and by the other half's change times another share.
    """

    nodes: tuple[Node, ...]
    line: Polynomial  # through the nodes
    errors: tuple[Errors, ...]  # at the newest node, for each tensor of a feature; empty without proof, or when used
    untried: float  # the trust in the mean where there is no proof yet: 1 or 0
    shares: tuple[tuple[Tensor, Tensor | None], ...]  # of the own and of the other change, for each tensor
    partner: Proven | None = None  # that of the call which has the other half; None if this call has both

    @classmethod
    def by(cls, nodes: Sequence[Node], setting: Setting) -> Self:
        """Return the prediction from the newest two nodes; a third node, if there is one, tests it."""
        untried = float(setting.share(nodes) <= SHORT)
        alone = cls(tuple(nodes[:2]), Polynomial.through(nodes[:2]), _errors(nodes), untried, ())
        if setting.halves is Halves.TOGETHER:
            one, two = (replace(alone, errors=_half(alone.errors, number)) for number in (0, 1))
            shares = tuple((_twice(own), _twice(other)) for own, other in _shares(one, two))
            return replace(alone, shares=shares, errors=())
        if setting.halves is Halves.APART:  # reuses until `with_partner`, which needs the errors
            return replace(alone, shares=tuple((part.new_zeros(()), None) for part in nodes[0].feature))
        return replace(
            alone, shares=tuple((alone._in(number), None) for number in range(len(nodes[0].feature))), errors=()
        )

    def is_half_of(self, other: Proven) -> bool:
        """Return whether two calls, neither of which has a partner, know their halves from the same steps."""
        steps = [[node.step for node in each.nodes] for each in (self, other)]
        is_alone = self.partner is other.partner is None
        return is_alone and steps[0] == steps[1] and len(self.errors) == len(other.errors)

    def with_partner(self, partner: Proven) -> Proven:
        """Return the prediction for one half of guidance, together with that of the call which has the other half."""
        return replace(self, shares=_shares(self, partner), partner=replace(partner, errors=()), errors=())

    def __call__(self, step: int, timestep: Tensor | float) -> Feature:
        changes = self._changes(step, timestep)
        theirs = changes if self.partner is None else self.partner._changes(step, timestep)
        found = []
        for newest, change, other_change, (own, other) in zip(
            self.nodes[0].feature, changes, theirs, self.shares, strict=True
        ):
            moved = torch.addcmul(newest, change, own)
            if other is not None:
                swapped = other_change.roll(len(newest) // 2, dims=0) if self.partner is None else other_change
                moved = torch.addcmul(moved, swapped, other)
            found.append(moved)
        return tuple(found)

    def _changes(self, step: int, timestep: Tensor | float) -> list[Tensor]:
        return [end - begin for begin, end in zip(self.nodes[0].feature, self.line(step, timestep), strict=True)]

    def _in(self, number: int, other: Proven | None = None, sign: int = 1) -> Tensor:
        """Return for which samples a part of a tensor is extrapolated, (B, 1, ..): 1 or 0.

        The part is the tensor itself, or the sum or the difference with that of another half.
        """
        newest = self.nodes[0].feature[number]
        if not self.errors:
            return newest.new_full((), self.untried if sign > 0 else 0.0)
        reused, extrapolated = self.errors[number]
        if other is not None:
            reused = reused + sign * other.errors[number][0]
            extrapolated = extrapolated + sign * other.errors[number][1]
        return (_size(extrapolated) <= PROOF * _size(reused)).to(newest.dtype)


def _errors(nodes: Sequence[Node]) -> tuple[Errors, ...]:
    """Return the errors at the newest node, for each tensor of a feature; none without two nodes before it."""
    if len(nodes) < 3:
        return ()
    expected = Polynomial.through(nodes[1:3])(nodes[0].step, nodes[0].timestep)
    tensors = zip(nodes[0].feature, nodes[1].feature, expected, strict=True)
    return tuple((_wide(old - new), _wide(line - new)) for new, old, line in tensors)


def _wide(error: Tensor) -> Tensor:
    return error if error.is_complex() else error.float()


def _half(errors: tuple[Errors, ...], number: int) -> tuple[Errors, ...]:
    return tuple((reused.chunk(2)[number], extrapolated.chunk(2)[number]) for reused, extrapolated in errors)


def _size(errors: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(errors, dim=tuple(range(1, errors.ndim)), keepdim=True)
    return size


def _shares(one: Proven, two: Proven) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return the shares with which one half moves by its own change and by the other's, for each tensor."""
    found = []
    for number in range(len(one.nodes[0].feature)):
        mean, difference = one._in(number, two), one._in(number, two, sign=-1)
        found.append(((mean + difference) / 2, (mean - difference) / 2))
    return tuple(found)


def _twice(share: Tensor) -> Tensor:
    return torch.cat([share, share]) if share.ndim else share


def _are_unmatched(nodes: Sequence[Node]) -> bool:
    """Return whether samples have timesteps of their own, and a feature does not begin with the samples' dimension."""
    counts = {node.timestep.numel() for node in nodes if isinstance(node.timestep, Tensor)} - {1}
    return any(not part.ndim or len(part) % count for count in counts for part in nodes[0].feature)


def _lerp(start: Tensor, end: Tensor, weight: Coordinate) -> Tensor:
    if isinstance(weight, Tensor):
        weight = weight.to(start.dtype).reshape(-1, *[1] * (start.ndim - 1)) if weight.ndim else weight.to(start.dtype)
        if weight.numel() > 1:  # the frames of a video follow each other within a sample
            weight = weight.repeat_interleave(start.shape[0] // weight.numel(), dim=0)
    return torch.lerp(start, end, weight)


def _choice(by_step: bool | Tensor, step: int, timestep: Coordinate) -> Coordinate:  # noqa: FBT001 (a value, not an option)
    if isinstance(by_step, Tensor):
        return torch.where(by_step, float(step), timestep)
    return float(step) if by_step else timestep

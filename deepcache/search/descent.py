"""Descent on real images: full steps and the order of a cheap plan are moved as long as its images come nearer.

The first-order error of a calibration says little of plans with few full steps, and each of their trials costs little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.metrics.fidelity import psnr_each
from deepcache.plan import CachePlan, Order, require_whole
from deepcache.sampling.workload import Sampling, Workload

ORDERS: tuple[Order, ...] = (1, 2, "auto", 0)  # as they are tried
CERTAIN = 1.0  # standard errors by which the mean over seeds has to grow, since few seeds say little about others
Array = NDArray[np.float64]
Move = Callable[[CachePlan], CachePlan | None]  # None where a plan cannot be moved so


class Images:
    """The images of a workload; uncached ones are kept, so that they are sampled once."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._kept: dict[tuple[Sampling, int], Tensor] = {}

    def sample(self, sampling: Sampling, seeds: Sequence[int]) -> Tensor:
        with self._workload.under(sampling):
            return self._workload.sample(seeds, progress=False, **sampling.arguments)

    def uncached(self, solver: Sampling, seeds: Sequence[int]) -> Tensor:
        new = [seed for seed in seeds if (solver, seed) not in self._kept]
        if new:
            self._kept |= zip(((solver, seed) for seed in new), self.sample(solver, new), strict=True)
        return torch.stack([self._kept[solver, seed] for seed in seeds])


def descended_on_images(
    workload: Workload,
    sampling: Sampling,
    plan: CachePlan,
    seeds: Sequence[int],
    most_evaluations: int,
    *,
    target: Sampling | None = None,
) -> CachePlan:
    """Return a plan of the same cost whose images lie nearer to uncached images, in the mean of the log MSE of seeds.

    Args:
        workload: what is sampled.
        sampling: the solver and its steps; its own plan does not count.
        plan: the plan to begin with, for all U-Net calls of the sampling.
        seeds: evaluate the plan that is found on other seeds.
        most_evaluations: how many plans are sampled at most, on all seeds; uncached images come on top.
        target: the solver and steps whose uncached images are the goal; those of `sampling` if not given.
    """
    images, uncached = Images(workload), replace(target or sampling, plan=None)

    def nearness(trial: CachePlan) -> Array:
        found = images.sample(replace(sampling, plan=trial), seeds)
        return np.array(psnr_each(found, images.uncached(uncached, seeds)))

    return descended(plan, nearness, most_evaluations)


def descended(plan: CachePlan, nearness: Callable[[CachePlan], Array], most_evaluations: int) -> CachePlan:
    """Return the plan that moves of single full steps (but step 0) and of the order lead to; all cost the same.

    Each move is kept, and repeated, if the mean of the nearness of seeds, (B,), grows by more than `CERTAIN` standard
    errors. The search ends when there is no such move, or when `most_evaluations` plans were evaluated.

    References:
        "Direct Search" Solution of Numerical and Statistical Problems (Hooke and Jeeves, 1961),
        https://doi.org/10.1145/321062.321069
    """
    require_whole("most_evaluations", most_evaluations, at_least=1)
    if plan.idle_steps:
        raise DeepCacheError("expected a plan whose steps between full ones are all idle or all shallow, got a mixture")
    known = {plan: nearness(plan)}
    found, moves, failed, number = plan, list(_moves(plan)), 0, 0
    while failed < len(moves):
        trial = moves[number % len(moves)](found)
        if trial is not None and trial not in known:
            if len(known) == most_evaluations:
                break
            known[trial] = nearness(trial)
        if trial is not None and _is_larger(known[trial], known[found]):
            found, failed = trial, 0
        else:
            failed, number = failed + 1, number + 1
    return found


def _is_larger(one: Array, other: Array) -> bool:
    """Return whether the mean of one value a seed is larger than that of the other, beyond chance."""
    gains = one - other
    return bool(gains.mean() > CERTAIN * gains.std() / max(1, len(gains) - 1) ** 0.5)


def _moves(plan: CachePlan) -> Iterator[Move]:
    """Yield the moves in the order in which they are tried: those that change most come first."""
    for order in ORDERS:
        yield partial(_in_order, order)
    yield _stretched
    half = max(1, plan.num_steps // plan.num_full // 2)  # of an even plan's interval
    for distance in sorted({half, 1}, reverse=True):
        for index in range(1, plan.num_full):
            yield partial(_shifted, index, -distance)
            yield partial(_shifted, index, distance)


def _in_order(order: Order, plan: CachePlan) -> CachePlan:
    return replace(plan, order=order)


def _stretched(plan: CachePlan) -> CachePlan | None:
    """Spread the full steps as far as the last step, which becomes full."""
    newest, end = plan.full_steps[-1], plan.num_steps - 1
    if newest == 0:
        return None
    return replace(plan, full_steps=tuple(int(step * end / newest + 0.5) for step in plan.full_steps))


def _shifted(index: int, distance: int, plan: CachePlan) -> CachePlan | None:
    """Move the full step of an index, if there is room for it between its neighbours."""
    before, step, after = (*plan.full_steps, plan.num_steps)[index - 1 : index + 2]
    if not before < step + distance < after:
        return None
    steps = (*plan.full_steps[:index], step + distance, *plan.full_steps[index + 1 :])
    return replace(plan, full_steps=steps)

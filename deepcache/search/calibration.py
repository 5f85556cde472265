"""`calibrate`: a few seeds, sampled without a cache, tell the error of every plan, and so the best plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from tqdm import tqdm

from deepcache.errors import DeepCacheError
from deepcache.plan import ORDERS, CachePlan, Order, highest, require_order, require_whole
from deepcache.sampling.conditions import Conditions, given_conditions
from deepcache.sampling.workload import Workload
from deepcache.search.programming import Steps, best, descended, stretches
from deepcache.search.recorder import Array, Recorder, Responses, Vectors, gains
from deepcache.unets.pipelines import require_sampler

SEEDS = range(100_000, 100_008)  # seeds that nobody evaluates on
LONGEST = 24  # steps between full steps
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Calibration:
    """The responses at a branch, and the gains with which a step's error arrives at the end of sampling.

    Attributes:
        responses: what stale features do to each step's output.
        gains: (T, B), the norm at the end of a unit of error at a step.
    """

    responses: Responses
    gains: Array

    @property
    def num_steps(self) -> int:
        """The number of U-Net calls of a generation."""
        return self.responses.num_steps

    def error(self, plan: CachePlan) -> float:
        """Return a plan's error at the end of sampling, to first order: the norm of the sum of the steps' errors.

        The error is the geometric mean over samples, since few samples that tip over to another image dominate an
        arithmetic mean. A plan for another number of steps, or at another branch, is refused.
        """
        if (plan.num_steps, plan.branch) != (self.num_steps, self.responses.branch):
            raise DeepCacheError(
                f"expected a plan for {self.num_steps} steps at branch {self.responses.branch}, got one for "
                f"{plan.num_steps} at branch {plan.branch}"
            )
        return self._error_of(highest(plan.order))(plan.full_steps)

    def plan(self, num_full: int, order: Order | None = None) -> CachePlan:
        """Return the plan of `num_full` full steps, 1 .. T, with the least `error` that was found.

        The sum of the errors' norms bounds `error` from above; dynamic programming finds its minimum exactly. From that
        minimum and from the even plans, one of which ends with a full step, full steps are moved as long as `error`
        falls. Without an order, the best of all `ORDERS` is taken; with "auto", the plan is made for the highest.

        Raises:
            DeepCacheError: `num_full` or `order` is out of range.
        """
        if order is None:
            return min((self.plan(num_full, each) for each in ORDERS), key=self.error)
        degree, count = highest(require_order(order)), self.num_steps
        error = self._error_of(degree)
        require_whole("num_full", num_full, at_least=1, at_most=count)
        bounded, _ = best(self._stretches(degree, max(LONGEST, -(-count // num_full) + 1)), num_full)
        reached = [descended(steps, count, error) for steps in (bounded, *even(count, num_full))]
        return CachePlan(count, min(reached, key=error), self.responses.branch, order)

    @cached_property
    def _stretches(self) -> Callable[[int, int], Array]:
        """The function from order and longest gap to the `stretches`, which are worked out once."""
        typical = np.exp(np.log(self.gains + _TINY).mean(axis=1, keepdims=True))
        products = self.responses.products(np.broadcast_to(typical, self.gains.shape))

        def norm(nodes: Sequence[int], step: int) -> float:
            return float(self.responses.squared_error(nodes, step, products) ** 0.5)

        return cache(lambda order, longest: stretches(norm, self.num_steps, order, longest))

    def _error_of(self, order: int) -> Callable[[Steps], float]:
        """Return the function from full steps to `error`."""

        @cache
        def stretch(nodes: Steps, end: int) -> Vectors:
            total: Vectors = np.zeros(self.responses.vectors[-1].shape[1:], np.float32)
            for step in range(nodes[0] + 1, end):
                total += self.gains[step][:, None].astype(np.float32) * self.responses.error(nodes, step)
            return total

        def error(full_steps: Steps) -> float:
            ends = (*full_steps[1:], self.num_steps)
            nodes = (full_steps[max(0, i - order) : i + 1][::-1] for i in range(len(full_steps)))
            total = sum(map(stretch, nodes, ends))
            return float(np.exp(np.log(np.square(total).sum(axis=1) + _TINY).mean() / 2))

        return error


def even(num_steps: int, num_full: int) -> list[Steps]:
    """Return the full steps of the even plans: from 0 on, and where more than one is full, from 0 to the last step."""
    found = [tuple(int(step) for step in np.floor(np.arange(num_full) * num_steps / num_full))]
    if num_full > 1:
        found.append(tuple(int(step) for step in np.linspace(0, num_steps - 1, num_full).round()))
    return found


def calibrate(
    pipe: Any,
    *,
    branch: int = 0,
    seeds: Sequence[int] = SEEDS,
    prompts: Sequence[str] | None = None,
    conditions: Conditions | None = None,
    progress: bool = True,
    **arguments: Any,
) -> Calibration:
    """Measure what shallow steps get wrong, along the uncached samples of a few seeds.

        found = deepcache.calibrate(pipe, prompts=["a red sneaker", ...], num_inference_steps=50)
        plan = found.plan(num_full=17)

    With T steps the calibration costs some T / 2 shallow steps for each step, and a dozen uncached samplings.

    Args:
        pipe: a diffusers pipeline.
        branch: branch of the plans to come.
        seeds: at most as many as fit into one batch; evaluate plans on other seeds.
        prompts: what the samples show, for a model that takes prompts: seed i takes prompt i modulo their number; the
            embedded models take captions of garments if none are given.
        conditions: a function from a list of seeds to the pipeline's arguments for them, instead of prompts.
        progress: whether to show a progress bar.
        **arguments: passed on to the pipeline, e.g. `num_inference_steps`, `guidance_scale`.

    Raises:
        DeepCacheError: the U-Net has no such branch, there are fewer than two steps, or prompts are missing.
        UnsupportedUNetError: the pipeline cannot be cached.
    """
    require_sampler(pipe)
    workload = Workload(pipe, given_conditions(pipe, prompts, conditions), len(seeds), arguments)
    with tqdm(desc=f"calibrate branch {branch}", unit="run", disable=None if progress else True, leave=False) as bar:
        return calibration(workload, seeds, branch, bar.update)


def calibration(
    workload: Workload, seeds: Sequence[int], branch: int, advance: Callable[[], Any] = lambda: None
) -> Calibration:
    """Calibrate a workload, as its pipeline is now, at a branch; call `advance` after each sampling of the seeds."""

    def generate() -> None:
        workload.sample(seeds, progress=False)
        advance()

    recorder = Recorder.of(workload.pipe, generate, branch)
    return Calibration(recorder.responses(), gains(workload.pipe, generate, recorder))

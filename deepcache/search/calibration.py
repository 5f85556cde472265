"""`calibrate`: a few seeds, sampled without a cache, tell the error of every plan, and so the best plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from tqdm import tqdm

from deepcache.errors import DeepCacheError
from deepcache.plan import ORDERS, CachePlan, require_order, require_whole
from deepcache.sampling.conditions import Conditions, given_conditions
from deepcache.sampling.workload import Workload
from deepcache.search.programming import Stretches, best, descended
from deepcache.search.recorder import Recorder, gains
from deepcache.search.responses import Array, Responses, Vectors
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "_stretches", cache(self._measured_stretches))

    @property
    def num_steps(self) -> int:
        return self.responses.num_steps

    def error(self, plan: CachePlan) -> float:
        """Return a plan's error at the end of sampling, to first order.

        The error is the norm of the sum of the steps' errors, since errors of neighbouring steps add up or cancel. It
        is the geometric mean over samples, since few samples that tip over to another image dominate an arithmetic
        mean.

        Args:
            plan: a plan for as many steps as the calibration's, at its branch.

        Raises:
            DeepCacheError: the plan has another number of steps or another branch.
        """
        if (plan.num_steps, plan.branch) != (self.num_steps, self.responses.branch):
            raise DeepCacheError(
                f"expected a plan for {self.num_steps} steps at branch {self.responses.branch}, got one for "
                f"{plan.num_steps} at branch {plan.branch}"
            )
        return self._sum_of_errors(plan.order)(plan.full_steps)

    def plan(self, num_full: int, order: int | None = None) -> CachePlan:
        """Return the plan of `num_full` full steps with the least `error`.

        The sum of the errors' norms bounds `error` from above; dynamic programming finds its minimum exactly. From that
        minimum and from the even plan, full steps are moved as long as `error` falls.

        Args:
            num_full: number of full steps, 1 .. T.
            order: order of the prediction, one of `ORDERS`; the best of all orders if not given.

        Raises:
            DeepCacheError: `num_full` or `order` is out of range.
        """
        if order is None:
            found = [self.plan(num_full, each) for each in ORDERS]
            return min(found, key=self.error)
        require_order(order)
        require_whole("num_full", num_full, at_least=1)
        count, branch = self.num_steps, self.responses.branch
        if num_full > count:
            raise DeepCacheError(f"expected at most {count} full steps, got {num_full}")
        stretches: Callable[[int, int], Stretches] = self._stretches  # type: ignore[attr-defined]
        bounded, _ = best(stretches(order, max(LONGEST, -(-count // num_full) + 1)), num_full)
        even = tuple(int(step) for step in np.floor(np.arange(num_full) * count / num_full))
        error = self._sum_of_errors(order)
        reached = [descended(steps, count, error) for steps in (bounded, even)]
        return CachePlan(count, min(reached, key=error), branch, order)

    def _measured_stretches(self, order: int, longest: int) -> Stretches:
        typical = np.exp(np.log(self.gains + _TINY).mean(axis=1, keepdims=True))
        products = self.responses.products(np.broadcast_to(typical, self.gains.shape))

        def norm(nodes: Sequence[int], step: int) -> float:
            return float(self.responses.squared_error(nodes, step, products) ** 0.5)

        return Stretches.of(norm, self.num_steps, order, longest)

    def _sum_of_errors(self, order: int) -> Callable[[tuple[int, ...]], float]:
        """Return the function from full steps to `error`."""

        @cache
        def stretch(nodes: tuple[int, ...], end: int) -> Vectors:
            shape = (self.gains.shape[1], self.responses.vectors[-1].shape[-1])
            total: Vectors = np.zeros(shape, np.float32)
            for step in range(nodes[0] + 1, end):
                total += self.gains[step][:, None].astype(np.float32) * self.responses.error(nodes, step)
            return total

        def error(full_steps: tuple[int, ...]) -> float:
            ends = (*full_steps[1:], self.num_steps)
            nodes = (full_steps[max(0, i - order) : i + 1][::-1] for i in range(len(full_steps)))
            total = sum(map(stretch, nodes, ends))
            return float(np.exp(np.log(np.square(total).sum(axis=1) + _TINY).mean() / 2))

        return error


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
        prompts: what the samples show, for a model that takes prompts: seed i takes prompt i modulo their number. The
            embedded models take captions of garments if none are given.
        conditions: a function from a list of seeds to the pipeline's arguments for them, instead of prompts.
        progress: whether to show a progress bar.
        **arguments: passed on to the pipeline, e.g. `num_inference_steps`, `guidance_scale`.

    Raises:
        DeepCacheError: the U-Net has no such branch, a generation has fewer than two steps, or the model needs prompts
            and has none.
        UnsupportedUNetError: the pipeline cannot be cached.
    """
    require_sampler(pipe)
    asked = given_conditions(pipe, prompts, conditions)
    workload = Workload(pipe, asked, len(seeds), arguments)
    with tqdm(desc=f"calibrate branch {branch}", unit="run", disable=None if progress else True, leave=False) as bar:
        return calibration(workload, seeds, branch, bar.update)


def calibration(
    workload: Workload, seeds: Sequence[int], branch: int, advance: Callable[[], Any] = lambda: None
) -> Calibration:
    """Calibrate a workload, as its pipeline is now, at a branch; call `advance` after each sampling of the seeds."""

    def generate() -> None:
        workload.sample(seeds, **{"progress": False, **workload.arguments})
        advance()

    recorder = Recorder.of(workload.pipe, generate, branch)
    return Calibration(recorder.responses(), gains(workload.pipe, generate, recorder))

"""What one run on a few seeds tells of every plan, and the best plan for it."""

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
from deepcache.sampling.samples import sample
from deepcache.search.descent import descended
from deepcache.search.gains import gains
from deepcache.search.programming import Stretches, best
from deepcache.search.recorder import Recorder
from deepcache.search.responses import Array, Responses, Vectors
from deepcache.unets.pipelines import require_sampler

SEEDS = range(100_000, 100_008)  # none that anybody evaluates on
LONGEST = 24  # steps between full ones
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Calibration:
    """Responses at a branch, and the gains with which an error at a step arrives at the end, (T, B)."""

    responses: Responses
    gains: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "_stretches", cache(self._measured_stretches))

    @property
    def num_steps(self) -> int:
        return self.responses.num_steps

    def error(self, plan: CachePlan) -> float:
        """What a plan gets wrong in the end, to first order: the norm of its errors' sum, geometric mean of samples.

        Errors of neighbouring steps add up or cancel, so that their sum says more than the sum of their norms. The
        geometric mean is that of a typical sample; few that tip over to another image rule the arithmetic one.

        Raises:
            DeepCacheError: a plan for another number of steps or another branch.
        """
        if (plan.num_steps, plan.branch) != (self.num_steps, self.responses.branch):
            raise DeepCacheError(
                f"expected a plan for {self.num_steps} steps at branch {self.responses.branch}, got one for "
                f"{plan.num_steps} at branch {plan.branch}"
            )
        return self._sum_of_errors(plan.order)(plan.full_steps)

    def plan(self, num_full: int, order: int | None = None) -> CachePlan:
        """The plan of `num_full` full steps whose error is least, of an order or of all.

        The sum of the errors' norms bounds `error` from above. Its least is found exactly, by dynamic programming; from
        there, and from the even plan, full steps are moved as long as `error` falls.

        Raises:
            DeepCacheError: an order or number of full steps that is out of range.
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
        error = self._sum_of_errors(order)
        reached = [descended(steps, count, error) for steps in (bounded, _evenly(count, num_full))]
        return CachePlan(count, min(reached, key=error), branch, order)

    def _measured_stretches(self, order: int, longest: int) -> Stretches:
        typical = np.exp(np.log(self.gains + _TINY).mean(axis=1, keepdims=True))
        products = self.responses.products(np.broadcast_to(typical, self.gains.shape))

        def norm(nodes: Sequence[int], step: int) -> float:
            return float(self.responses.squared_error(nodes, step, products) ** 0.5)

        return Stretches.of(norm, self.num_steps, order, longest)

    def _sum_of_errors(self, order: int) -> Callable[[tuple[int, ...]], float]:
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

    With T steps it costs some T / 2 shallow steps for each step, and a dozen uncached samplings.

    Args:
        pipe: a diffusers pipeline.
        branch: of the plans to come.
        seeds: as many as fit into a batch; evaluate plans on others.
        prompts: what the samples are asked to show, of a model that takes prompts: seed i takes prompt i, modulo
            their number. The embedded models take captions of garments if there are none.
        conditions: instead of prompts, a function from a list of seeds to the pipeline's arguments for them.
        progress: whether to show it.
        **arguments: the pipeline's, e.g. `num_inference_steps`, `guidance_scale`.

    Raises:
        DeepCacheError: no such branch, fewer than two steps, or no prompts for a model that needs some.
        UnsupportedUNetError: a pipeline that cannot be cached.
    """
    require_sampler(pipe)
    asked = given_conditions(pipe, prompts, conditions)
    own = {"batch_size": len(seeds), "conditions": asked, "progress": False}
    with tqdm(desc=f"calibrate branch {branch}", unit="run", disable=None if progress else True, leave=False) as bar:

        def generate() -> None:
            sample(pipe, seeds, **{**own, **arguments})
            bar.update()

        recorder = Recorder.of(pipe, generate, branch)
        return Calibration(recorder.responses(), gains(pipe, generate, recorder))


def _evenly(count: int, num_full: int) -> tuple[int, ...]:
    """As many as that, as even as can be."""
    return tuple(int(step) for step in np.floor(np.arange(num_full) * count / num_full))

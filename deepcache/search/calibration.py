"""What one run on a few seeds tells of every plan, and the best plan for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepcache.errors import DeepCacheError
from deepcache.plan import CachePlan, require_order, require_whole
from deepcache.sampling.conditions import Conditions, conditions_of
from deepcache.search.gains import gains
from deepcache.search.programming import Stretches, best
from deepcache.search.recorder import Recorder
from deepcache.search.responses import Responses

SEEDS = range(100_000, 100_008)  # none that anybody evaluates on
LONGEST = 24  # steps between full ones


@dataclass(frozen=True, eq=False)
class Calibration:
    """Responses at a branch, and the gain of each step (T,)."""

    responses: Responses
    gains: NDArray[np.float64]

    def error(self, nodes: Sequence[int], step: int) -> float:
        """The squared error that a shallow step makes in the end, by the full steps before it, newest first."""
        return float(self.gains[step] ** 2) * self.responses.error(nodes, step)

    def plan(self, num_full: int, order: int = 1) -> CachePlan:
        """The plan of `num_full` full steps whose errors' squares have the least sum: exact, by dynamic programming.

        Raises:
            DeepCacheError: an order or number of full steps that is out of range.
        """
        require_order(order)
        require_whole("num_full", num_full, at_least=1)
        count = self.responses.num_steps
        if num_full > count:
            raise DeepCacheError(f"expected at most {count} full steps, got {num_full}")
        longest = max(LONGEST, -(-count // num_full) + 1)
        full_steps, _ = best(Stretches.of(self.error, count, order, longest), num_full)
        return CachePlan(count, full_steps, self.responses.branch, order)


def calibrate(
    pipe: Any,
    *,
    branch: int = 0,
    seeds: Sequence[int] = SEEDS,
    conditions: Conditions | None = None,
    **arguments: Any,
) -> Calibration:
    """Measure what shallow steps get wrong, along the uncached samples of a few seeds.

    Args:
        pipe: a diffusers pipeline.
        branch: of the plans to come.
        seeds: as many as fit into a batch; evaluate plans on others.
        conditions: from seeds to the pipeline's arguments; `conditions_of(pipe)` if not given.
        **arguments: the pipeline's, e.g. `num_inference_steps`, `guidance_scale`.
    """
    asked = conditions or conditions_of(pipe)

    def generate() -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(**asked(seeds), generator=generators, output_type="np", **arguments)

    recorder = Recorder.of(pipe, generate, branch)
    return Calibration(recorder.responses(), gains(pipe, generate, recorder))

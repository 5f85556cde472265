"""The plans that were found best for the embedded models: one file for each model, solver and number of steps."""

from __future__ import annotations

from pathlib import Path

from deepcache.errors import DeepCacheError
from deepcache.plan import CachePlan

PLANS = Path(__file__).parent / "plans"


def recommended(model: str, scheduler: str, num_steps: int) -> CachePlan:
    """The plan that was nearest to the uncached images among those that cost no more than reuse at interval 3.

    Eight seeds decided (`bench/pareto/recommend.py`); the plan's figures on other seeds are in bench/results/pareto.

        plan = deepcache.models.recommended("mini-ldm", "ddim", 50)

    Args:
        model: name of an embedded model.
        scheduler: name of a solver, one of `deepcache.sampling.schedulers.SCHEDULERS`.
        num_steps: steps of the solver.

    Raises:
        DeepCacheError: no plan was found for these; the message names those for which one was.
    """
    path = path_of(model, scheduler, num_steps)
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in PLANS.glob("*.json")))
        raise DeepCacheError(f"expected a plan out of {known}; got {path.stem}; deepcache.tune finds others")
    return CachePlan.load(path)


def path_of(model: str, scheduler: str, num_steps: int) -> Path:
    """The path of the plan's file."""
    return PLANS / f"{model}-{scheduler}-{num_steps}.json"

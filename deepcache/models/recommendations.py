"""The best plans found for the embedded models, by scheduler and number of steps, as files of `CachePlan.save`."""

from __future__ import annotations

from pathlib import Path

from deepcache.errors import DeepCacheError
from deepcache.plan import CachePlan

PLANS = Path(__file__).parent / "plans"


def recommended(model: str, scheduler: str, num_steps: int) -> CachePlan:
    """The prediction that was nearest to the uncached images of all that cost no more than reuse at N = 3.

    On eight seeds that decided it (`bench/pareto/recommend.py`); its figures on others are in bench/results/pareto.

        plan = deepcache.models.recommended("mini-ldm", "ddim", 50)

    Args:
        model: an embedded one.
        scheduler: a name in `deepcache.sampling.SCHEDULERS`.
        num_steps: of the scheduler.

    Raises:
        DeepCacheError: none was found for these; it names those that were.
    """
    path = place(model, scheduler, num_steps)
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in PLANS.glob("*.json")))
        raise DeepCacheError(f"expected a plan out of {known}; got {path.stem}; deepcache.tune finds others")
    return CachePlan.load(path)


def place(model: str, scheduler: str, num_steps: int) -> Path:
    """Where the plan's file is."""
    return PLANS / f"{model}-{scheduler}-{num_steps}.json"

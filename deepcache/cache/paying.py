"""Says where caching cannot pay, because too few steps are shallow or all steps are too far apart."""

from __future__ import annotations

from deepcache.errors import warn
from deepcache.plan import CachePlan, Interval

FEW_STEPS = 4  # the number of steps of models made for few steps: LCM, Turbo, Lightning


def reason(num_full: int, num_steps: int) -> str | None:
    """Return why a plan with this many full steps cannot pay; None where it can."""
    if num_full == num_steps:
        steps = "the only step is" if num_steps == 1 else f"all {num_steps} steps are"
        return f"{steps} full, so that nothing is cached"
    if num_steps <= FEW_STEPS:
        return (
            f"{num_steps} steps, as few-step models (LCM, Turbo) take, lie too far apart to share a feature; "
            "sample without a cache"
        )
    return None


def warn_if_it_cannot_pay(plan: CachePlan | Interval, num_steps: int | None) -> bool:
    """Warn where a generation has so few steps that caching cannot pay, unless its plan caches nothing on purpose.

    Args:
        plan: the plan of the block.
        num_steps: the steps of the generation that begins; None if their number is not known.

    Returns:
        Whether a `DeepCacheWarning` was given.
    """
    if num_steps is None or num_steps > FEW_STEPS or getattr(plan, "interval", None) == 1:
        return False
    num_full = sum(plan.is_full(step, num_steps) for step in range(num_steps))
    if isinstance(plan, CachePlan) and 1 < num_steps == num_full:
        return False
    warn(str(reason(num_full, num_steps)))
    return True

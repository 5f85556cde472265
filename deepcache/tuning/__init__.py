"""From a budget to a plan: `deepcache.tune`."""

from typing import TYPE_CHECKING

from deepcache.lazy import lazy

if TYPE_CHECKING:
    from deepcache.tuning.budget import Budget
    from deepcache.tuning.tuned import Tuned
    from deepcache.tuning.tuner import tune

__all__ = ["Budget", "Tuned", "tune"]

__getattr__, __dir__ = lazy(__name__, {"budget": ("Budget",), "tuned": ("Tuned",), "tuner": ("tune",)})

"""Faster diffusers pipelines by caching deep U-Net features: DeepCache (Ma et al., CVPR 2024).

    with deepcache.cached(pipe, interval=3, branch=0):
        image = pipe(prompt).images[0]

Each name is imported on first use, so that `import deepcache`, and with it the pytest plugin, does not import torch.
"""

from typing import TYPE_CHECKING

from deepcache.lazy import lazy

if TYPE_CHECKING:
    from deepcache import compat, models
    from deepcache.cache.caching import Cache, cached
    from deepcache.cache.generation import Generation
    from deepcache.costs.cuts import Cuts, cuts
    from deepcache.errors import DeepCacheError, DeepCacheWarning, UnsupportedUNetError
    from deepcache.plan import CachePlan, Interval, quadratic, uniform
    from deepcache.search.calibration import Calibration, calibrate
    from deepcache.search.tuner import tune

__all__ = [
    "Cache", "CachePlan", "Calibration", "Cuts", "DeepCacheError", "DeepCacheWarning", "Generation", "Interval",
    "UnsupportedUNetError", "cached", "calibrate", "compat", "cuts", "models", "quadratic", "tune", "uniform",
]  # fmt: skip
__version__ = "0.2.0"

__getattr__, __dir__ = lazy(
    __name__,
    {
        "cache.caching": ("Cache", "cached"),
        "cache.generation": ("Generation",),
        "compat": (),
        "costs.cuts": ("Cuts", "cuts"),
        "errors": ("DeepCacheError", "DeepCacheWarning", "UnsupportedUNetError"),
        "models": (),
        "plan": ("CachePlan", "Interval", "quadratic", "uniform"),
        "search.calibration": ("Calibration", "calibrate"),
        "search.tuner": ("tune",),
    },
)

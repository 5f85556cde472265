"""Cached U-Net forward passes for diffusers pipelines: DeepCache (Ma et al., CVPR 2024).

    with deepcache.cached(pipe, interval=3, branch=0):
        image = pipe(prompt).images[0]

Names are imported on first use, so that `import deepcache` (and the pytest plugin) costs no import of torch.
"""

from typing import TYPE_CHECKING

from deepcache.lazy import lazy

if TYPE_CHECKING:
    from deepcache import compat, models
    from deepcache.cache.caching import Cache, cached
    from deepcache.cache.generation import Generation
    from deepcache.errors import DeepCacheError, DeepCacheWarning, UnsupportedUNetError
    from deepcache.plan import CachePlan, quadratic, uniform
    from deepcache.plan_text import load_plan, save_plan
    from deepcache.search.calibration import Calibration, calibrate
    from deepcache.search.tuner import tune

__all__ = [
    "Cache",
    "CachePlan",
    "Calibration",
    "DeepCacheError",
    "DeepCacheWarning",
    "Generation",
    "UnsupportedUNetError",
    "cached",
    "calibrate",
    "compat",
    "load_plan",
    "models",
    "quadratic",
    "save_plan",
    "tune",
    "uniform",
]
__version__ = "0.1.0"

__getattr__, __dir__ = lazy(
    __name__,
    {
        "cache.caching": ("Cache", "cached"),
        "errors": ("DeepCacheError", "DeepCacheWarning", "UnsupportedUNetError"),
        "cache.generation": ("Generation",),
        "compat": (),
        "models": (),
        "plan": ("CachePlan", "quadratic", "uniform"),
        "plan_text": ("load_plan", "save_plan"),
        "search.calibration": ("Calibration", "calibrate"),
        "search.tuner": ("tune",),
    },
)

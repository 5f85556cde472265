"""Cached U-Net forward passes for diffusers pipelines: DeepCache (Ma et al., CVPR 2024).

    with deepcache.cached(pipe, interval=3, branch=0):
        image = pipe(prompt).images[0]

Names are imported on first use, so that `import deepcache` (and the pytest plugin) costs no import of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepcache import models
    from deepcache.caching import Cache, cached
    from deepcache.errors import DeepCacheError, DeepCacheWarning, UnsupportedUNetError
    from deepcache.generation import Generation
    from deepcache.plan import CachePlan, quadratic, uniform

__all__ = [
    "Cache",
    "CachePlan",
    "DeepCacheError",
    "DeepCacheWarning",
    "Generation",
    "UnsupportedUNetError",
    "cached",
    "models",
    "quadratic",
    "uniform",
]
__version__ = "0.1.0"

_HOMES = {
    "caching": ("Cache", "cached"),
    "errors": ("DeepCacheError", "DeepCacheWarning", "UnsupportedUNetError"),
    "generation": ("Generation",),
    "plan": ("CachePlan", "quadratic", "uniform"),
}


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module("deepcache.models")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"deepcache.{home}"), name)
    raise AttributeError(f"module 'deepcache' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Cached U-Net forward passes for diffusers pipelines: DeepCache (Ma et al., CVPR 2024).

    with deepcache.cached(pipe, interval=3, branch=0):
        image = pipe(prompt).images[0]
"""

from deepcache.caching import Cache, Generation, cached
from deepcache.errors import DeepCacheError, UnsupportedUNetError
from deepcache.plan import CachePlan, quadratic, uniform

__all__ = [
    "Cache",
    "CachePlan",
    "DeepCacheError",
    "Generation",
    "UnsupportedUNetError",
    "cached",
    "quadratic",
    "uniform",
]
__version__ = "0.1.0"

"""The older package's interface on this one: change `from DeepCache import` to `from deepcache.compat import`."""

from __future__ import annotations

from typing import Any

from deepcache.cache.caching import Cache, cached
from deepcache.errors import DeepCacheError
from deepcache.unets.pipelines import Pipeline


class DeepCacheSDHelper:
    """`DeepCacheSDHelper` of the package `DeepCache` 0.1.1, with the same three calls.

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()
    image = pipe(prompt).images[0]
    helper.disable()
    """

    def __init__(self, pipe: Pipeline | None = None) -> None:
        self.pipe = pipe  # may be given to `enable` instead
        self._params: dict[str, Any] | None = None
        self._cache: Cache | None = None

    def set_params(
        self, cache_interval: int = 1, cache_branch_id: int = 0, skip_mode: str = "uniform", order: int = 0
    ) -> None:
        """Choose the plan. An enabled pipeline follows it at once and begins its generation anew.

        Args:
            cache_interval: N, at least 1: steps 0, N, 2N, ... are full.
            cache_branch_id: the branch, at least 0.
            skip_mode: "uniform"; the older package had no other mode.
            order: the order of the prediction, which the older package did not have; 0 reuses the feature.

        Raises:
            DeepCacheError: `skip_mode` is not "uniform", or a parameter of an enabled pipeline is out of its range.
        """
        if skip_mode != "uniform":
            raise DeepCacheError(
                f"expected skip_mode 'uniform', got {skip_mode!r}; for other plans use deepcache.cached(pipe, plan)"
            )
        before, self._params = self._params, {"interval": cache_interval, "branch": cache_branch_id, "order": order}
        if self._cache is not None:
            try:
                self.enable()
            except DeepCacheError:
                self._params = before
                raise

    def enable(self, pipe: Pipeline | None = None) -> Cache:
        """Cache the pipeline until `disable` is called, and return the cache, which tells what each generation did.

        Raises:
            DeepCacheError: there is no pipeline, or the parameters were not set or are out of their ranges.
            UnsupportedUNetError: the U-Net cannot be cached.
        """
        pipe = self.pipe if pipe is None else pipe
        if pipe is None or self._params is None:
            missing = "a pipeline: pass pipe=..." if pipe is None else "parameters: call set_params before enable"
            raise DeepCacheError(f"expected {missing}")
        cache = cached(pipe, **self._params).enable()
        self.disable()
        self.pipe, self._cache = pipe, cache
        return cache

    def disable(self) -> None:
        """Give the U-Net its own `forward` back; do nothing if the pipeline is not enabled."""
        if self._cache is not None:
            self._cache.disable()
            self._cache = None

"""The older package's interface on this one: change `from DeepCache import` to `from deepcache.compat import`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from deepcache.cache.caching import Cache, cached
from deepcache.errors import DeepCacheError


class DeepCacheSDHelper:
    """`DeepCacheSDHelper` of `DeepCache` 0.1.1, with the same three calls.

        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=3, cache_branch_id=0)
        helper.enable()
        image = pipe(prompt).images[0]
        helper.disable()

    Args:
        pipe: a diffusers pipeline; may be given to `enable` instead.
    """

    def __init__(self, pipe: Any = None) -> None:
        self.pipe = pipe
        self._params: dict[str, Any] | None = None
        self._block: ExitStack | None = None

    def set_params(
        self,
        cache_interval: int = 1,
        cache_branch_id: int = 0,
        skip_mode: str = "uniform",
        order: int = 0,
    ) -> None:
        """Choose the plan; a pipeline that is enabled takes it at once, and begins its generation anew.

        Args:
            cache_interval: N, at least 1: steps 0, N, 2N, ... are full.
            cache_branch_id: the branch.
            skip_mode: "uniform", the only one that the older package had.
            order: of the prediction, which the older package did not have; 0 reuses the feature.

        Raises:
            DeepCacheError: another skip mode; or, of an enabled pipeline, which keeps the old ones, out of range.
        """
        if skip_mode != "uniform":
            raise DeepCacheError(
                f"expected skip_mode 'uniform', got {skip_mode!r}; for other plans use deepcache.cached(pipe, plan)"
            )
        before, self._params = self._params, {"interval": cache_interval, "branch": cache_branch_id, "order": order}
        if self._block is not None:
            try:
                self.enable()
            except DeepCacheError:
                self._params = before
                raise

    def enable(self, pipe: Any = None) -> Cache:
        """Cache the pipeline until `disable`; if it is cached already, with the new parameters from now on.

        Returns:
            What `deepcache.cached` yields; it tells what each generation did.

        Raises:
            DeepCacheError: no pipeline, or parameters that were not set or are out of range.
            UnsupportedUNetError: a U-Net that cannot be cached.
        """
        pipe = self.pipe if pipe is None else pipe
        if pipe is None or self._params is None:
            missing = "a pipeline: pass pipe=..." if pipe is None else "parameters: call set_params before enable"
            raise DeepCacheError(f"expected {missing}")
        with ExitStack() as block:
            cache = block.enter_context(cached(pipe, **self._params))
            self.disable()
            self.pipe, self._block = pipe, block.pop_all()
        cache.keep(self._block)  # it stays enabled when the helper is gone, as the older one does
        return cache

    def disable(self) -> None:
        """Give the U-Net its own forward back; does nothing where nothing is enabled."""
        if self._block is not None:
            self._block.close()
            self._block = None

"""The two steps of a cached U-Net as they run; which of them does is decided outside."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from deepcache.unets.diffusers.forward import full_forward, shallow_forward
from deepcache.unets.diffusers.views import Cut, Feature, shallow_view


class Steps(Protocol):
    """The kernel's two steps on one U-Net and cut."""

    def full(self, *args: Any, **kwargs: Any) -> tuple[Any, Feature]: ...

    def shallow(self, feature: Feature, *args: Any, **kwargs: Any) -> Any: ...


class EagerSteps:
    """The kernel as it is; nothing is kept between calls, so threads may share it."""

    def __init__(self, unet: Any, cut: Cut) -> None:
        shallow_view(unet, cut)  # refuses hooks on the blocks that the branch cuts, before anything runs
        self.full = partial(full_forward, unet, cut)
        self.shallow = partial(shallow_forward, unet, cut)

"""The family of all other U-Nets: a network of any class, cut where one of its calls shows that it can be cut."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import nn

from deepcache.errors import UnsupportedUNetError
from deepcache.plan import IDLE
from deepcache.unets.calls import Call
from deepcache.unets.family import Family, Nest, Stage
from deepcache.unets.watched.cuts import idle_modules
from deepcache.unets.watched.steps import CutWatchedUNet, cuts_for


class WatchedFamily:
    """Networks that no other family knows; diffusers' transformers, which have no skip connections, are refused."""

    classes: Mapping[str, type[nn.Module]] = {}

    def covers(self, unet: Any) -> bool:
        return isinstance(unet, nn.Module)

    def cut(self, unet: nn.Module, branch: int) -> CutWatchedUNet:
        _require_skips(unet)
        return CutWatchedUNet(unet, branch)

    def nest(self, unet: Any, call: Call | None = None) -> Nest[Stage]:
        """Return what each branch adds as a down stage; what no branch runs is the mid stage, and up stages are empty.

        An up stage has the name of the module that its branch leaves out.
        """
        _require_skips(unet)
        if call is None:
            raise _untold(unet)
        cuts = cuts_for(unet, *call)
        dead = [idle_modules(unet, cut) for cut in cuts]
        added = [set[nn.Module](), *(outer - inner for outer, inner in pairwise(dead))]
        down = tuple(Stage(f"all but {cut.gate}", tuple(modules)) for cut, modules in zip(cuts, added, strict=True))
        return Nest(down, Stage("deepest", tuple(dead[-1])), tuple(Stage(cut.gate, ()) for cut in cuts))

    def example(self, unet: Any, **_: Any) -> Call:
        raise _untold(unet)

    def num_frames(self, unet: Any, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (nobody tells a video from a volume)
        return 1


def _require_skips(unet: nn.Module) -> None:
    if type(unet).__module__.startswith("diffusers.models.transformers"):
        raise UnsupportedUNetError(
            f"expected a network with skip connections, got a {type(unet).__name__}; branch={IDLE} caches any network"
        )


def _untold(unet: Any) -> UnsupportedUNetError:
    return UnsupportedUNetError(
        f"the configuration of a {type(unet).__name__} tells no inputs; pass call=(args, kwargs), the arguments of a "
        "U-Net call, or generate once before you ask"
    )


WATCHED: Family = WatchedFamily()

"""`cuts` shows where a U-Net can be cut, and what a shallow step saves at each branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepcache.costs.macs import EVERYTHING, counted
from deepcache.errors import one_line
from deepcache.unets.calls import one_sample
from deepcache.unets.pipelines import unet_of
from deepcache.unets.registry import family_of
from deepcache.unets.structure import on_meta


@dataclass(frozen=True)
class Cuts:
    """The branches of a U-Net; `str` gives a table, a line a branch.

    Attributes:
        unet: the name of the U-Net's class.
        names: for each branch, the module whose result is kept, or that begins with what is kept.
        saved: for each branch, the share of the MACs that a shallow step saves, everything counted, 0..1.
    """

    unet: str
    names: tuple[str, ...]
    saved: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        lines = [f"{self.unet}: {len(self)} branches", f"{'branch':>6}  {'saved':>6}  cut at"]
        rows = zip(self.names, self.saved, strict=True)
        lines += [f"{b:>6}  {100 * saved:>4.0f} %  {name}" for b, (name, saved) in enumerate(rows)]
        return "\n".join(lines)


def cuts(unet: Any, *args: Any, **kwargs: Any) -> Cuts:
    """Find where a U-Net of any class can be cut. Nothing is computed but shapes, on the meta device.

        print(deepcache.cuts(unet, torch.randn(1, 3, 64, 64), torch.tensor([500])))

    Args:
        unet: a U-Net, or a pipeline with one.
        *args, **kwargs: the arguments of one call of the U-Net.

    Raises:
        UnsupportedUNetError: the U-Net cannot be cut, or does not run without data, on which `cached` watches it.
    """
    _, network = unet_of(unet)
    with one_line("this U-Net does not run without data", "deepcache.cached watches its first call instead"):
        twin, call = on_meta(network), one_sample(args, kwargs)
        cost = counted(twin, *call)
        if not cost.num_branches:
            family_of(twin).nest(twin, call)  # says why
    whole = cost.full(EVERYTHING)
    saved = tuple(1 - cost.shallow(branch, EVERYTHING) / whole for branch in range(cost.num_branches))
    return Cuts(type(network).__name__, tuple(stage.name for stage in cost.up), saved)

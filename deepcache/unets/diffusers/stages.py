"""A U-Net as a nest of stages, each pushing or popping exactly one skip.

With down stages d_0 (conv_in), d_1, ..., d_n and up stages u_n, ..., u_0, where u_i joins skip i:

    h_0 = d_0(x),  h_i = d_i(h_{i-1});   g_{n+1} = mid(h_n),  g_i = u_i([g_{i+1}, h_i])

A down stage is a resnet with its attention, or a downsampler. An up stage is a resnet with its attention and, where
it is the last of its block, the upsampler. A stage tells where it is; the U-Net's own `forward` runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from deepcache.errors import DeepCacheError, UnsupportedUNetError
from deepcache.unets.diffusers.families import require_family

PER_RESNET = ("resnets", "attentions", "motion_modules", "temp_convs", "temp_attentions")


@dataclass(frozen=True)
class Stage:
    """Place and modules of a stage.

    Attributes:
        name: where it is in the U-Net.
        modules: those that run in it.
        block: the number of its down or up block; -1 for `conv_in` and the mid block.
        resnet: the number of its resnet within the block; for a downsampler, how many resnets come before it.
        is_last: of its block.
    """

    name: str
    modules: tuple[nn.Module, ...]
    block: int = -1
    resnet: int = 0
    is_last: bool = True


@dataclass(frozen=True)
class Nest:
    """All stages of one U-Net: `down[i]` pushes skip i, `up[i]` pops it."""

    down: tuple[Stage, ...]
    mid: Stage
    up: tuple[Stage, ...]

    @property
    def num_branches(self) -> int:
        """One a skip: branches are 0 .. `num_branches` - 1."""
        return len(self.down)


def nest(unet: Any) -> Nest:
    """The stages of a U-Net.

    Raises:
        UnsupportedUNetError: its class or one of its blocks is not known (`deepcache.unets.diffusers.families`).
    """
    require_family(unet)
    down = (_stage("conv_in", [unet.conv_in]), *_stages("down_blocks", unet.down_blocks))
    up = tuple(_stages("up_blocks", unet.up_blocks))[::-1]
    if len(down) != len(up):
        raise UnsupportedUNetError(
            f"expected as many skips pushed as popped; this {type(unet).__name__} pushes {len(down)} and pops {len(up)}"
        )
    return Nest(down, _stage("mid", [unet.mid_block]), up)


def require_branch(branch: object, num_branches: int) -> int:
    """Refuse a branch that the U-Net does not have."""
    if isinstance(branch, bool) or not isinstance(branch, int) or not 0 <= branch < num_branches:
        raise DeepCacheError(
            f"expected branch 0..{num_branches - 1}, one a skip connection of this U-Net, got {branch!r}"
        )
    return branch


def _stages(kind: str, blocks: Sequence[Any]) -> Iterator[Stage]:
    for b, block in enumerate(blocks):
        num_resnets = len(block.resnets)
        lists = per_resnet(block)
        others = [module for name, module in block.named_children() if name not in lists]
        rest = [m for other in others for m in (other if isinstance(other, nn.ModuleList) else [other])]
        pushes = bool(getattr(block, "downsamplers", None))  # a downsampler pushes a skip, an upsampler pops none
        for r in range(num_resnets):
            is_last = r == num_resnets - 1 and not pushes
            own = [modules[r] for modules in lists.values()]
            yield _stage(f"{kind}.{b}.{r}", own + rest * is_last, b, r, is_last=is_last)
        if pushes:
            yield _stage(f"{kind}.{b}.downsampler", rest, b, num_resnets)


def per_resnet(block: Any) -> dict[str, nn.ModuleList]:
    """The lists of a block that have one module a resnet."""
    found = {name: block._modules[name] for name in PER_RESNET if block._modules.get(name) is not None}
    return {name: modules for name, modules in found.items() if len(modules) == len(block.resnets)}


def _stage(
    name: str, modules: Sequence[nn.Module | None], block: int = -1, resnet: int = 0, *, is_last: bool = True
) -> Stage:
    return Stage(name, tuple(module for module in modules if module is not None), block, resnet, is_last)

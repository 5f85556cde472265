"""Views: a U-Net cut at a branch that shares all modules with the U-Net and runs its class's own `forward`.

diffusers' U-Nets descend through `down_blocks`, call `mid_block` and ascend through `up_blocks`, and a block takes as
many skips as it has resnets. So a view with other lists of blocks, and blocks with other lists of resnets, is a U-Net
that runs other stages, with every input and option that its class knows.

    full     down_blocks          mid   ... up block to the cut | gate, up block from the cut ...
    shallow  down_blocks to b           gate with the given feature, up block from the cut ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from deepcache.errors import UnsupportedUNetError
from deepcache.unets.diffusers.stages import SKIP_UP_BLOCKS, nest, per_resnet
from deepcache.unets.family import Feature, require_branch
from deepcache.unets.structure import WRAPPED

_EMPTY = nn.ModuleList()


@dataclass(frozen=True)
class Cut:
    """Where a branch b cuts a U-Net: the skips 0..b stay live on a shallow step."""

    whole: int  # how many down blocks run whole on a shallow step
    part: int  # how many resnets of the next down block run as well
    block: int  # the number of the up block that the feature enters
    resnet: int  # the number of the resnet in that block before which the feature enters
    num_adapted: int  # how many T2I-Adapter residuals the live down blocks take

    @classmethod
    def of(cls, unet: Any, branch: int) -> Self:
        """Return the cut of a U-Net at a branch; `nest` and `require_branch` raise their errors."""
        found = nest(unet)
        require_branch(branch, found.num_branches)
        down, up = found.down[branch], found.up[branch]
        whole = down.block + 1 if down.is_last else down.block
        part = 0 if down.is_last else down.resnet + 1
        last = unet.down_blocks[whole] if part else None  # with cross-attention it adds before its downsampler
        adapts = last is not None and part == len(last.resnets) and getattr(last, "has_cross_attention", False)
        return cls(whole, part, up.block, up.resnet, whole + adapts)


class Gate(nn.Module):
    """The up block at the cut. It keeps the feature that enters it in `entered`, or lets `given` enter instead."""

    given: Feature | None = None
    entered: Feature | None = None

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self.has_cross_attention = getattr(block, "has_cross_attention", False)

    @property
    def resnets(self) -> nn.ModuleList:
        return self.block.resnets  # type: ignore[no-any-return]

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        (hidden_states,) = self.entered = self.given or (hidden_states,)
        if getattr(self.block, "s1", None):
            hidden_states = hidden_states.clone()  # FreeU scales it in place
        return self.block(hidden_states, *args, **kwargs)


class SkipGate(Gate):
    """A gate to a skip block, which takes the image so far beside the hidden state."""

    skip_conv = True  # diffusers knows a skip block by this attribute

    def forward(self, hidden_states: Tensor, skips: tuple[Tensor, ...], temb: Tensor, image: Tensor | None) -> Any:
        image_so_far = (image,) if isinstance(image, Tensor) else ()  # a block that was cut hands on 0 for no image
        hidden_states, *images = self.entered = self.given or (hidden_states, *image_so_far)
        return self.block(hidden_states, skips, temb, images[0] if images else None)


class _Nothing(nn.Module):
    """The mid block of a shallow step: it returns what it is given."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


_NOTHING = _Nothing()


def full_view(unet: Any, cut: Cut) -> tuple[Any, Gate]:
    """Return a view that runs everything, and its gate, which has the feature afterwards."""
    blocks = list(unet.up_blocks)
    before, gate = _cut_up(blocks[cut.block], cut)
    return _view(unet, up_blocks=[*blocks[: cut.block], *before, gate, *blocks[cut.block + 1 :]]), gate


def shallow_view(unet: Any, cut: Cut) -> tuple[Any, Gate]:
    """Return a view that runs the outermost b + 1 stages of either side, and its gate for the feature."""
    down = list(unet.down_blocks)
    live = down[: cut.whole]
    if cut.part:
        live.append(_slice(down[cut.whole], slice(cut.part), downsamplers=None))
    blocks = list(unet.up_blocks)
    _, gate = _cut_up(blocks[cut.block], cut)
    return _view(unet, down_blocks=live, mid_block=_NOTHING, up_blocks=[gate, *blocks[cut.block + 1 :]]), gate


def _cut_up(block: Any, cut: Cut) -> tuple[list[Any], Gate]:
    """Return the resnets of an up block before the cut as a block, if there are any, and the gate to the rest."""
    is_skip = type(block) in SKIP_UP_BLOCKS
    kind = SkipGate if is_skip else Gate
    if cut.resnet == 0:
        return [], kind(block)
    idle: dict[str, Any] = {"upsamplers": None}
    if is_skip:  # what follows the resnets of a skip block runs after the cut
        idle = {"upsampler": nn.Identity(), "resnet_up": None}
        if "attentions" in block._modules:
            idle["attentions"] = [nn.Identity()]
    return [_slice(block, slice(cut.resnet), **idle)], kind(_slice(block, slice(cut.resnet, None)))


def _slice(block: Any, resnets: slice, **changes: nn.Module | list[nn.Module] | None) -> Any:
    """Return a view of a block with some of its resnets, or refuse a block that somebody has wrapped."""
    is_wrapped = getattr(block.forward, "__func__", None) is not type(block).forward
    if is_wrapped or block._forward_hooks or block._forward_pre_hooks:
        raise UnsupportedUNetError(
            f"expected a {type(block).__name__} without hooks, because this branch cuts through it; found a hook, or a "
            "forward that another package put there; remove it, hook its resnets instead, or take another branch"
        )
    lists = {name: list(modules)[resnets] for name, modules in per_resnet(block).items()}
    return _view(block, **{**lists, **changes})


def _view(module: Any, **changes: nn.Module | list[nn.Module] | None) -> Any:
    """Return a copy of a module that shares its children but for the changed ones, and runs its class's `forward`.

    The copy lacks what was put into the module (`WRAPPED`), such as a cache that answers the module's calls.
    """
    copy = object.__new__(type(module))  # constructors would take too long: every step makes two views
    state = copy.__dict__
    state.update(module.__dict__)
    for name in WRAPPED:
        state.pop(name, None)
    state["_modules"] = modules = {**module._modules}
    for name, value in changes.items():
        if isinstance(value, list):
            value = _view(_EMPTY, **{str(i): each for i, each in enumerate(value)})
        modules[name] = value
    return copy

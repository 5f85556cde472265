"""The kernel: a full and a shallow forward pass of a U-Net, as pure functions.

A full step runs every stage and also returns the feature of branch b, the hidden state g_{b+1} that enters
up stage b. A shallow step runs d_0..d_b and u_b..u_0 with a g_{b+1} given to it (DeepCache, Ma et al., 2024,
https://arxiv.org/abs/2312.00858, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deepcache.stages import DownStage
from deepcache.unets import Inputs, StagedUNet


def full_forward(staged: StagedUNet, branch: int, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
    """The U-Net's own forward pass, and the feature of a branch.

    Args:
        staged: the U-Net.
        branch: 0 .. number of skips - 1.
        *args, **kwargs: those of the U-Net's `forward`.

    Returns:
        What `forward` returns, bit for bit, and the feature, (B, C, H', W').
    """
    inputs = staged.family.embed(staged.unet, *args, **kwargs)
    nest = staged.nest
    hidden, skips = _descend(nest.down, inputs)
    hidden = nest.mid(hidden, inputs.conditions)
    if inputs.mid_residual is not None:
        hidden = hidden + inputs.mid_residual
    feature = _ascend(staged, hidden, skips, inputs, range(nest.num_branches - 1, branch, -1))
    output = _ascend(staged, feature, skips, inputs, range(branch, -1, -1))
    return staged.family.head(staged.unet, output, inputs), feature


def shallow_forward(staged: StagedUNet, branch: int, feature: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The outermost `branch` + 1 stages of either side around a feature from another step.

    Args:
        staged: the U-Net.
        branch: the one that `feature` was taken at.
        feature: (B, C, H', W').
        *args, **kwargs: those of the U-Net's `forward`.

    Returns:
        What `forward` returns.
    """
    inputs = staged.family.embed(staged.unet, *args, **kwargs)
    _, skips = _descend(staged.nest.down[: branch + 1], inputs)
    output = _ascend(staged, feature, skips, inputs, range(branch, -1, -1))
    return staged.family.head(staged.unet, output, inputs)


def _descend(stages: Sequence[DownStage], inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    hidden, skips = inputs.sample, []
    for stage in stages:
        hidden = stage(hidden, inputs.conditions)
        skips.append(hidden)
    if inputs.skip_residuals is not None:
        skips = [skip + residual for skip, residual in zip(skips, inputs.skip_residuals, strict=False)]
    return hidden, skips


def _ascend(staged: StagedUNet, hidden: Tensor, skips: list[Tensor], inputs: Inputs, order: range) -> Tensor:
    for i in order:
        size = skips[i - 1].shape[2:] if inputs.fit_skips and i > 0 else None
        hidden = staged.nest.up[i](hidden, skips[i], inputs.conditions, size)
    return hidden

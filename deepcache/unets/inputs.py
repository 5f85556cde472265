"""What is left of a U-Net's arguments once they are embedded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deepcache.stages import Conditions


@dataclass(frozen=True)
class Inputs:
    """The embedded arguments of one U-Net call.

    Attributes:
        sample: the input of `conv_in`, (B, C, H, W).
        conditions: for every stage.
        fit_skips: upsample to the next skip's size, for sizes that 2^levels does not divide.
        skip_residuals: ControlNet's, one a skip, added to it before it is popped.
        mid_residual: ControlNet's, added to the mid block's output.
        divisor: (B, 1, 1, 1), what the output is divided by (Fourier time embeddings), or None.
        return_dict: as in the U-Net's `forward`.
    """

    sample: Tensor
    conditions: Conditions
    fit_skips: bool = False
    skip_residuals: tuple[Tensor, ...] | None = None
    mid_residual: Tensor | None = None
    divisor: Tensor | None = None
    return_dict: bool = True

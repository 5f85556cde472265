"""Where networks run."""

from __future__ import annotations

import torch

from deepcache.errors import DeepCacheError, shown


def usual_device() -> str:
    """CUDA's first, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_device(device: str | torch.device, *, has_values: bool = True) -> None:
    """Refuse a device that this machine does not have, or, if it must have values, `meta`, which has shapes alone.

    Raises:
        DeepCacheError: such a device.
    """
    try:
        found = torch.zeros(1, device=device)
        if has_values:
            found.item()
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise DeepCacheError(
            f"expected a device of this machine, got {shown(str(device))}; pass cpu or cuda"
        ) from error

"""Where networks run."""

from __future__ import annotations

import torch

from deepcache.errors import DeepCacheError


def usual_device() -> str:
    """CUDA's first, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_device(device: str | torch.device) -> None:
    """Refuse one that this machine does not have.

    Raises:
        DeepCacheError: so.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise DeepCacheError(f"expected a device of this machine, got {str(device)!r}; pass cpu or cuda") from error

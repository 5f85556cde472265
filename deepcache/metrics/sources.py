"""Where the weights of large extractors come from and are looked for. Imports nothing slow."""

from __future__ import annotations

import os
from pathlib import Path

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # what torch-fidelity calls it
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"  # torchvision's
ALEXNET_URL = f"https://download.pytorch.org/models/{ALEXNET_FILE}"


def inception_in_cache() -> Path:
    """Where torch.hub keeps Inception's."""
    return in_torch_cache(INCEPTION_FILE)


def in_torch_cache(file: str) -> Path:
    """Where torch.hub keeps a file."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(os.environ.get("TORCH_HOME") or cache).expanduser() / "hub" / "checkpoints" / file

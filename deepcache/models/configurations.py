"""The configuration files of diffusers and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError


def read(path: Path) -> dict[str, Any]:
    """A configuration file of diffusers or transformers.

    Raises:
        DeepCacheError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DeepCacheError(
            f"expected a diffusers configuration in {path}, which cannot be read: {error!r}"
        ) from error
    if not isinstance(found, dict):
        raise DeepCacheError(f"expected a diffusers configuration in {path}, got a {type(found).__name__}")
    return found

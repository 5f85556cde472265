"""A pipeline as a diffusers folder, whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from deepcache.errors import DeepCacheError, first_line


def require_free(folder: Path) -> None:
    """Nothing is overwritten.

    Raises:
        DeepCacheError: it is a file, or a folder that holds something.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DeepCacheError(f"expected {folder} to be free or an empty folder, which it is not; pass another --out")


def save(pipe: Any, folder: Path) -> None:
    """Written beside its place under another name, then renamed.

    Raises:
        DeepCacheError: the place is taken, or it cannot be written.
    """
    require_free(folder)
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        pipe.save_pretrained(partial, safe_serialization=True)
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        raise DeepCacheError(f"expected to write {folder}, got: {first_line(error)}; nothing of it is left") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)

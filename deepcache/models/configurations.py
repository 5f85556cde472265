"""The configuration files of diffusers and transformers, and a bound on what they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from deepcache.errors import DeepCacheError
from deepcache.files import read_json

MOST_BYTES = 1 << 20  # configurations have some KiB
MOST_MODULES = 10_000  # layers and groups of layers that are built at once; SDXL's U-Net has 1,929


def read(path: Path) -> dict[str, Any]:
    """A configuration file of diffusers or transformers.

    Raises:
        DeepCacheError: it cannot be read, or holds something else.
    """
    found = read_json(path, "a diffusers configuration", most_bytes=MOST_BYTES)
    if not isinstance(found, dict):
        raise DeepCacheError(f"expected a diffusers configuration in {path}, got a {type(found).__name__}")
    return found


@contextmanager
def bounded() -> Iterator[None]:
    """Within the block, this thread builds no network of more than `MOST_MODULES` layers and groups of layers.

    A configuration of a few bytes may ask for millions, under names that differ from class to class. They are counted
    as they are made, so that a request for too many is refused after a second.

    Raises:
        DeepCacheError: a network of more.
    """
    thread, count = get_ident(), 0

    def refuse(module: nn.Module, name: str, child: nn.Module | None) -> None:  # noqa: ARG001 (torch's signature)
        nonlocal count
        count += get_ident() == thread
        if count > MOST_MODULES:
            raise DeepCacheError(
                f"expected a configuration of at most {MOST_MODULES:,} layers, got one of more; "
                "correct the numbers of its layers and blocks"
            )

    handle = register_module_module_registration_hook(refuse)
    try:
        yield
    finally:
        handle.remove()

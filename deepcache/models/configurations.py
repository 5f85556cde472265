"""Configurations of diffusers and transformers: read from files, and built without memory, both within bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from deepcache.errors import DeepCacheError, first_line
from deepcache.files import read_json

MOST_BYTES = 1 << 20  # configurations have some KiB
MOST_MODULES = 10_000  # layers and groups of layers that are built at once; SDXL's U-Net has 1,929


def read(path: Path) -> dict[str, Any]:
    """The values of a configuration file.

    Raises:
        DeepCacheError: the file cannot be read, or does not hold an object.
    """
    found = read_json(path, "a diffusers configuration", most_bytes=MOST_BYTES)
    if not isinstance(found, dict):
        raise DeepCacheError(f"expected a diffusers configuration in {path}, got a {type(found).__name__}")
    return found


@contextmanager
def bounded() -> Iterator[None]:
    """Within the block, this thread builds no network of more than `MOST_MODULES` layers and groups of layers.

    A configuration of a few bytes may ask for millions of layers, under names that differ from class to class. Layers
    are counted as they are made, so that a request for too many is refused after a second.

    Raises:
        DeepCacheError: the network has more layers.
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


def on_meta(library: str, kind: str, config: Mapping[str, Any]) -> Any:
    """A network on the meta device: all of its shapes, and no memory.

    Args:
        library: module that holds the class, such as "diffusers".
        kind: name of the class.
        config: the network's configuration.

    Raises:
        DeepCacheError: the library has no such network, or the configuration is wrong.
    """
    try:
        build = getattr(import_module(library), kind)
        if not issubclass(build, nn.Module):
            raise TypeError(f"{kind} is no network")
        with torch.device("meta"), bounded():
            is_text = library == "transformers"
            found = build(build.config_class(**config)) if is_text else build.from_config(config)
    except DeepCacheError:
        raise
    except Exception as error:  # a wrong configuration makes the libraries raise a dozen kinds
        raise DeepCacheError(f"expected to build a {kind} of {library}: {first_line(error)}") from error
    return found.eval()

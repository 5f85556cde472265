"""Import the names of a package on first use, so that importing the package itself is cheap."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy(package: str, homes: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and the `__dir__` of a package.

    `homes` maps each module of the package to its names; a module without names stands for itself. A name must not be
    that of a submodule, since importing the submodule would replace it.
    """
    homes_of = {name: home for home, names in homes.items() for name in names or (home,)}

    def attribute(name: str) -> Any:
        if name not in homes_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = import_module(f"{package}.{homes_of[name]}")
        return getattr(home, name) if homes[homes_of[name]] else home

    return attribute, lambda: sorted({*vars(sys.modules[package]), *homes_of})

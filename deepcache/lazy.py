"""Names of a package that are imported on first use, so that importing the package itself costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy(package: str, homes: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`.

    Args:
        package: its `__name__`.
        homes: the modules below it, and the names that each has; a module without names stands for itself.
    """
    homes_of = {name: home for home, names in homes.items() for name in names or (home,)}

    def attribute(name: str) -> Any:
        if name not in homes_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = import_module(f"{package}.{homes_of[name]}")
        return getattr(home, name) if homes[homes_of[name]] else home

    return attribute, lambda: sorted(homes_of)

"""Put a handler in the place of a U-Net's `forward`, and take it out again, whoever else wraps the U-Net."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from deepcache.errors import DeepCacheError
from deepcache.unets.family import UNet

Handler = Callable[..., Any]  # takes the arguments of a U-Net's `forward` and returns what `forward` returns
_LOCK = threading.Lock()


@dataclass(eq=False)
class _Entry:
    """One stay of a handler in a U-Net, for the thread or task that installed the handler."""

    handler: Handler


# The entries of this thread or asyncio task, the innermost last. A task begins with a copy of the context that made the
# task; a new thread begins with an empty context.
_ENTERED: ContextVar[tuple[weakref.ref[_Entry], ...]] = ContextVar("deepcache_entries", default=())


class Installed:
    """Stands in for a U-Net's `forward` and passes each call to the first of these handlers that there is.

    1. the innermost entry of the calling thread or task;
    2. the handler that was installed last for all threads;
    3. the only entry of another thread or task, whose workers may make the call;
    4. if no handler is left, the U-Net's own `forward`.
    """

    def __init__(self, unet: UNet) -> None:
        self.unet = unet
        self._entries: tuple[_Entry, ...] = ()
        self._for_all: tuple[Handler, ...] = ()
        self._undo: list[Callable[[], None]] = []

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._handler()(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Make a pickle or a deep copy of a cached U-Net an ordinary U-Net."""
        return getattr, (self.unet, "forward")

    def _handler(self) -> Handler:
        entries = self._entries  # another thread may change it
        for entered in reversed(_ENTERED.get()):
            if (entry := entered()) in entries:
                return entry.handler
        if for_all := self._for_all:
            return for_all[-1]
        if len(entries) == 1:
            return entries[0].handler
        if not entries:  # a wrapper that came while a handler was installed still calls this object
            return self.original
        raise DeepCacheError(
            f"{len(entries)} blocks are open on this U-Net and this thread or task is in none of them; enter "
            "deepcache.cached in the thread or task that generates, or let all share one block"
        )

    @property
    def original(self) -> Handler:
        return type(self.unet).forward.__get__(self.unet)  # type: ignore[no-any-return]

    def add(self, handler: Handler, *, for_all: bool) -> None:
        if for_all:
            self._for_all = (*self._for_all, handler)
            return
        entry = _Entry(handler)
        self._entries = (*self._entries, entry)
        _ENTERED.set((*(entered for entered in _ENTERED.get() if entered() is not None), weakref.ref(entry)))

    def remove(self, handler: Handler) -> None:
        """Remove a handler from any thread or task; a context that still names its entry skips the entry."""
        self._entries = tuple(entry for entry in self._entries if entry.handler is not handler)
        self._for_all = tuple(other for other in self._for_all if other is not handler)
        if not self._entries and not self._for_all:
            self._take_out()

    def set_compiled_calls_aside(self, outer: UNet) -> None:
        """Make torch.compile's wrapper, and a U-Net that was compiled in place, call the U-Net uncompiled."""
        changes: list[tuple[UNet, str, Any]] = [(self.unet, "_compiled_call_impl", None)]
        if outer is not self.unet:
            changes.append((outer, "forward", self.unet.__call__))
        for module, name, value in changes:
            before = vars(module).get(name)
            if before is not None and before != value:
                vars(module)[name] = value
                self._undo.append(partial(vars(module).update, {name: before}))

    def _take_out(self) -> None:
        """Give the original `forward` back, wherever hooks that came or went meanwhile have moved this object."""
        for undo in self._undo:
            undo()
        names = vars(self.unet)
        if names.get("_old_forward") is self:  # accelerate's hook calls it
            names["_old_forward"] = self.original
        if names.get("forward") is self:
            del names["forward"]


def _put_there(unet: UNet) -> Any:
    """Return what stands in for the U-Net's `forward`, below accelerate's hook; None where nothing does."""
    return vars(unet).get("_old_forward", vars(unet).get("forward"))


def is_installed(unet: UNet) -> bool:
    """Return whether a handler answers some calls of the U-Net."""
    return isinstance(_put_there(unet), Installed)


def install(unet: UNet, outer: UNet, handler: Handler, *, for_all: bool = False) -> Installed:
    """Let a handler answer the U-Net's calls, and return the object that `uninstall` needs.

    Args:
        unet, outer: the U-Net, and what the pipeline calls: the U-Net, or `torch.compile`'s wrapper of it.
        handler: takes the arguments of `forward`.
        for_all: whether it answers every thread and task without an entry, or the calling thread or task gets an entry.

    Raises:
        DeepCacheError: another package has replaced the U-Net's `forward`.
    """
    with _LOCK:
        found = _put_there(unet)
        installed = found if isinstance(found, Installed) else Installed(unet)
        if found is not installed:
            if found is not None and getattr(found, "__func__", None) is not type(unet).forward:
                name = getattr(found, "__qualname__", type(found).__qualname__)
                raise DeepCacheError(
                    f"expected a U-Net with its own forward; another package replaced it by {name}; remove that first"
                )
            vars(unet)["_old_forward" if "_old_forward" in vars(unet) else "forward"] = installed
        installed.set_compiled_calls_aside(outer)
        installed.add(handler, for_all=for_all)
        return installed


def uninstall(installed: Installed, handler: Handler) -> None:
    """Undo `install`. When the last handler goes, the U-Net gets its own `forward` back."""
    with _LOCK:
        installed.remove(handler)

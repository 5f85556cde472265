"""Puts cached forwards into a U-Net and takes them out again, whoever else wraps it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from deepcache.errors import DeepCacheError

_LOCK = threading.Lock()


class Installed:
    """Stands in for a U-Net's `forward`: a call goes to the innermost block that its thread has entered.

    A thread that entered none (a worker under somebody else's block) takes the only one there is.
    """

    __slots__ = ("_entered", "_undo", "unet")

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self._entered: list[tuple[int, Callable[..., Any]]] = []
        self._undo: list[Callable[[], None]] = []

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._handler()(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a cached U-Net, pickled or deep, is an ordinary U-Net."""
        return getattr, (self.unet, "forward")

    def _handler(self) -> Callable[..., Any]:
        entered, thread = list(self._entered), threading.get_ident()
        own = [handler for owner, handler in entered if owner == thread]
        if not entered:  # still called: by a wrapper that came within the block, or by another thread as it ended
            return self.original
        if own or len(entered) == 1:
            return own[-1] if own else entered[0][1]
        raise DeepCacheError(
            f"{len(entered)} blocks are open on this U-Net and this thread has entered none of them; enter "
            "deepcache.cached in the thread that generates, or let all threads share one block"
        )

    @property
    def original(self) -> Callable[..., Any]:
        return type(self.unet).forward.__get__(self.unet)  # type: ignore[no-any-return]

    @property
    def is_idle(self) -> bool:
        return not self._entered

    def enter(self, handler: Callable[..., Any]) -> None:
        self._entered.append((threading.get_ident(), handler))

    def leave(self, handler: Callable[..., Any]) -> None:
        self._entered = [entry for entry in self._entered if entry[1] is not handler]

    def put(self) -> None:
        """Take the place of the innermost `forward`, below accelerate's hook."""
        slot = "_old_forward" if "_old_forward" in vars(self.unet) else "forward"
        vars(self.unet)[slot] = self

    def set_compiled_calls_aside(self, outer: Any) -> None:
        """Let torch.compile's wrapper, and a U-Net compiled in place, call the U-Net as it is."""
        self._set_aside(self.unet, "_compiled_call_impl", None)
        if outer is not self.unet:
            self._set_aside(outer, "forward", self.unet.__call__)

    def _set_aside(self, module: Any, name: str, value: Any) -> None:
        before = vars(module).get(name)
        if before is not None and before != value:
            vars(module)[name] = value
            self._undo.append(lambda: vars(module).update({name: before}))

    def take_out(self) -> None:
        """Give the original `forward` back, wherever hooks that came or went meanwhile have moved this one."""
        for undo in self._undo:
            undo()
        names = vars(self.unet)
        if names.get("_old_forward") is self:  # accelerate's hook calls it
            names["_old_forward"] = self.original
        if names.get("forward") is self:
            del names["forward"]


def install(unet: Any, outer: Any, handler: Callable[..., Any]) -> Installed:
    """Let a block's handler answer the U-Net's calls.

    Args:
        unet: the U-Net.
        outer: what the pipeline calls: the U-Net, or `torch.compile`'s wrapper of it.
        handler: takes the arguments of `forward`.

    Returns:
        What `uninstall` takes.

    Raises:
        DeepCacheError: another package has replaced the U-Net's `forward`.
    """
    with _LOCK:
        installed = _innermost(unet)
        if not isinstance(installed, Installed):
            installed = Installed(unet)
            installed.put()
        installed.set_compiled_calls_aside(outer)
        installed.enter(handler)
        return installed


def uninstall(installed: Installed, handler: Callable[..., Any]) -> None:
    """The reverse of `install`; the last one gives the original `forward` back."""
    with _LOCK:
        installed.leave(handler)
        if installed.is_idle:
            installed.take_out()


def _innermost(unet: Any) -> Any:
    found = vars(unet).get("_old_forward", vars(unet).get("forward"))
    if found is None or isinstance(found, Installed) or getattr(found, "__func__", None) is type(unet).forward:
        return found
    name = getattr(found, "__qualname__", type(found).__qualname__)
    raise DeepCacheError(
        f"expected a U-Net with its own forward; another package replaced it by {name}; remove that first"
    )

"""Puts cached forwards into a U-Net and takes them out again, whoever else wraps it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch

from deepcache.errors import DeepCacheError

_LOCK = threading.Lock()


class _Block:
    """A block that is open on a U-Net, and what answers its calls."""

    __slots__ = ("__weakref__", "handler")

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.handler = handler


# The blocks that this thread or coroutine is in, innermost last. A task of asyncio has a context of its own, which
# begins as a copy of the one that made the task; a new thread's context is empty.
_ENTERED: ContextVar[tuple[weakref.ref[_Block], ...]] = ContextVar("deepcache_blocks", default=())


class Installed:
    """Stands in for a U-Net's `forward`: a call goes to the innermost block that its thread or task is in.

    A call from a thread or task that is in none (a worker under somebody else's block) goes to the only one there is.
    """

    __slots__ = ("_blocks", "_undo", "unet")

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self._blocks: tuple[_Block, ...] = ()
        self._undo: list[Callable[[], None]] = []

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._handler()(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a cached U-Net, pickled or deep, is an ordinary U-Net."""
        return getattr, (self.unet, "forward")

    def _handler(self) -> Callable[..., Any]:
        blocks = self._blocks
        if not blocks:  # still called: by a wrapper that came within the block, or by another thread as it ended
            return self.original
        for entered in reversed(_ENTERED.get()):
            if (block := entered()) in blocks:
                return block.handler
        if len(blocks) == 1:
            return blocks[0].handler
        raise DeepCacheError(
            f"{len(blocks)} blocks are open on this U-Net and this thread or task is in none of them; enter "
            "deepcache.cached in the thread or task that generates, or let all share one block"
        )

    @property
    def original(self) -> Callable[..., Any]:
        return type(self.unet).forward.__get__(self.unet)  # type: ignore[no-any-return]

    @property
    def is_idle(self) -> bool:
        return not self._blocks

    def enter(self, handler: Callable[..., Any]) -> None:
        block = _Block(handler)
        self._blocks = (*self._blocks, block)
        _ENTERED.set((*(entered for entered in _ENTERED.get() if entered() is not None), weakref.ref(block)))

    def leave(self, handler: Callable[..., Any]) -> None:
        """Close a block, in whatever thread or task; contexts that still name it skip it."""
        self._blocks = tuple(block for block in self._blocks if block.handler is not handler)

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

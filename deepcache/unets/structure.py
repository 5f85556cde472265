"""A U-Net's modules without its weights: what the MACs of a step depend on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

from torch import nn

from deepcache.errors import FAILURES, one_line
from deepcache.unets.calls import shape_of

# Attributes of a module that another package has wrapped. They belong to the module, not to a copy of it.
WRAPPED = ("forward", "_old_forward", "_hf_hook", "_diffusers_hook", "_compiled_call_impl")
_SHAPING = ("out_features", "_active_adapter", "_disable_adapters", "merged_adapters")  # attributes of peft's layers
Counted = TypeVar("Counted")


def on_meta(network: nn.Module) -> nn.Module:
    """Return a copy of a network on the meta device, without weights, hooks and caches."""
    memo: dict[int, Any] = {id(p): nn.Parameter(shape_of(p), requires_grad=False) for p in network.parameters()}
    memo.update({id(buffer): shape_of(buffer) for buffer in network.buffers()})
    wrappers = (vars(m)[name] for m in network.modules() for name in WRAPPED if name in vars(m))
    memo.update({id(wrapper): None for wrapper in wrappers})  # they may hold weights
    twin = deepcopy(network, memo)
    module: Any
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        for name in WRAPPED:
            vars(module).pop(name, None)
        if hasattr(module, "set_chunk_feed_forward"):  # a layer that runs once for each chunk would be counted once
            module.set_chunk_feed_forward(chunk_size=None, dim=0)
    return twin.eval()


class Structure:
    """The modules of a U-Net as they were at one time, without weights; a structure does not keep the U-Net alive."""

    def __init__(self, unet: nn.Module) -> None:
        self._counts: dict[Any, Any] = {}
        self._turn = threading.Lock()
        self._twin: nn.Module | Exception
        try:
            self._twin = on_meta(unet)
        except FAILURES as error:
            self._twin = error

    def once(self, key: Any, count: Callable[[nn.Module], Counted]) -> Counted:
        """Return what `count` returns for the U-Net on the meta device; calls with the same key count once."""
        with self._turn:
            if key not in self._counts:
                with one_line(
                    "this U-Net does not run without data, by which its MACs are counted",
                    "set another attention processor, or count the MACs of its configuration: deepcache macs",
                ):
                    if isinstance(self._twin, Exception):
                        raise self._twin
                    self._counts[key] = count(self._twin)
            return self._counts[key]  # type: ignore[no-any-return]


_STRUCTURES: WeakKeyDictionary[nn.Module, tuple[list[Any], Structure]] = WeakKeyDictionary()


def structure_of(unet: nn.Module) -> Structure:
    """Return the structure of a U-Net as it is now; a new one is made only where modules or adapters have changed."""
    marks, modules = [], [unet]
    while modules:
        module = modules.pop()
        names = vars(module)
        marks.append((ref(module), *(str(names[name]) for name in _SHAPING if name in names)))
        modules.extend(child for child in module._modules.values() if child is not None)
    known = _STRUCTURES.get(unet)
    if known is None or known[0] != marks:
        known = _STRUCTURES[unet] = (marks, Structure(unet))
    return known[1]

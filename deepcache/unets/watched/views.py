"""Views: a network of any class with other modules in some places, which runs its class's own `forward`.

A view shares all modules that run with the network, and copies only the modules around those that it replaces. It is
made anew for every step, so that weights, adapters and hooks that came meanwhile are seen. On a shallow step a dead
module is a stub: a copy with the attributes of the module that returns placeholders, tensors of the shapes that the
module returned on a full step, so that lists stay aligned and nothing has to be known of the network's control flow.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deepcache.unets.structure import WRAPPED
from deepcache.unets.watched.cuts import Cut

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
          "_forward_hooks_always_called")  # fmt: skip
_OWN = frozenset(("_modules", *WRAPPED, *_HOOKS))  # attributes that a copy has of its own
Forward = Callable[..., Any]


@dataclass(frozen=True)
class Shape:
    """A tensor without its values."""

    size: torch.Size
    dtype: torch.dtype
    device: torch.device


class Results:
    """The outputs of modules by path, with shapes in place of tensors; one entry for each time that a module ran.

    Nothing alive reads a placeholder's values. Those of floats are NaN, so that they would be seen if something did.
    """

    def __init__(self) -> None:
        self._known: dict[str, list[tuple[list[Any], pytree.TreeSpec]]] = {}
        self._memory: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def add(self, path: str, output: Any) -> None:
        """Remember what a module returned."""
        leaves, spec = pytree.tree_flatten(output)
        shapes = [Shape(x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in leaves]
        self._known.setdefault(path, []).append((shapes, spec))

    def finish(self) -> None:
        """Make the placeholders; all of a type lie in the same memory."""
        shapes = [x for known in self._known.values() for leaves, _ in known for x in leaves if isinstance(x, Shape)]
        for kind in {(shape.dtype, shape.device) for shape in shapes}:
            most = max(prod(shape.size) for shape in shapes if (shape.dtype, shape.device) == kind)
            value = float("nan") if kind[0].is_floating_point or kind[0].is_complex else 0
            with torch.inference_mode(mode=False):  # so that they can be used with and without gradients
                self._memory[kind] = torch.full((most,), value, dtype=kind[0], device=kind[1])
        for known in self._known.values():
            known[:] = [([self._placeholder(x) for x in leaves], spec) for leaves, spec in known]

    def _placeholder(self, leaf: Any) -> Any:
        if not isinstance(leaf, Shape):
            return leaf
        return self._memory[leaf.dtype, leaf.device][: prod(leaf.size)].view(leaf.size)

    def count(self, path: str) -> int:
        return len(self._known.get(path, ()))

    def output(self, path: str, number: int) -> Any:
        """Return what a module returned at its call of a number, with placeholders for tensors."""
        leaves, spec = self._known[path][number]
        return pytree.tree_unflatten([x.detach() if isinstance(x, Tensor) else x for x in leaves], spec)


@dataclass
class Passage:
    """A passage is one step at the gate: the feature is taken from it, or given in its place.

    Attributes:
        feature: the feature; a copy, since the network may write into its own.
        calls: how often each replaced module was called.
    """

    feature: Tensor | None = None
    calls: dict[str, int] = field(default_factory=dict)


def full_view(network: nn.Module, cut: Cut, passage: Passage, results: Results | None = None) -> nn.Module:
    """Return a view that runs everything, takes the feature, and adds what dead modules return to `results`."""
    changes = dict.fromkeys(cut.gates, _taking(network.get_submodule(cut.gate), cut, passage, results))
    if results is not None:
        for path in cut.dead:
            changes[path] = _recording(network.get_submodule(path), path, results)
    return view(network, changes)


def shallow_view(network: nn.Module, cut: Cut, passage: Passage, results: Results) -> nn.Module:
    """Return a view whose gate returns the passage's feature, and whose dead modules return placeholders."""
    changes: dict[str, Forward] = {path: _standing_in(path, passage, results) for path in cut.dead}
    return view(network, {**changes, **dict.fromkeys(cut.gates, _giving(cut, passage, results))})


def _taking(module: nn.Module, cut: Cut, passage: Passage, results: Results | None) -> Forward:
    def forward(*args: Any, **kwargs: Any) -> Any:
        output = module(*args, **kwargs)
        found = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)][cut.leaf]
        passage.feature = found.clone()
        if results is not None:
            results.add(cut.gate, output)
        return output

    return forward


def _recording(module: nn.Module, path: str, results: Results) -> Forward:
    def forward(*args: Any, **kwargs: Any) -> Any:
        output = module(*args, **kwargs)
        results.add(path, output)
        return output

    return forward


def _standing_in(path: str, passage: Passage, results: Results) -> Forward:
    def forward(*_: Any, **__: Any) -> Any:
        number = passage.calls.get(path, 0)
        passage.calls[path] = number + 1
        return results.output(path, min(number, results.count(path) - 1))

    return forward


def _giving(cut: Cut, passage: Passage, results: Results) -> Forward:
    def forward(*_: Any, **__: Any) -> Any:
        passage.calls[cut.gate] = passage.calls.get(cut.gate, 0) + 1
        leaves, spec = pytree.tree_flatten(results.output(cut.gate, 0))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        feature = passage.feature
        assert feature is not None
        leaves[places[cut.leaf]] = feature.clone()
        return pytree.tree_unflatten(leaves, spec)

    return forward


def view(network: nn.Module, changes: Mapping[str, Forward]) -> nn.Module:
    """Return a view of a network in which the modules of some paths have another `forward` and no hooks."""
    tree: dict[str, Any] = {}
    for path, forward in changes.items():
        *parents, name = path.split(".")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = forward
    return _view(network, tree)


def attribute_set(made: nn.Module, network: nn.Module) -> str | None:
    """Return the path of an attribute that a copied module of a view was given in a call, and that would be lost."""
    for path, module in made.named_modules():
        before = vars(network.get_submodule(path))
        if vars(module) is not before:
            for name in {*vars(module), *before} - _OWN:
                if name not in vars(module) or name not in before or vars(module)[name] is not before[name]:
                    return f"{path}.{name}".lstrip(".")
    return None


def _view(module: nn.Module, tree: Mapping[str, Any]) -> nn.Module:
    copy = _copy(module)
    modules = vars(copy)["_modules"] = {**module._modules}
    for name, change in tree.items():
        child = module._modules[name]
        assert child is not None
        modules[name] = _view(child, change) if isinstance(change, dict) else _replaced(child, change)
    return copy


def _replaced(module: nn.Module, forward: Forward) -> nn.Module:
    copy = _copy(module)
    vars(copy)["forward"] = forward
    for name in _HOOKS:
        vars(copy)[name] = OrderedDict()
    return copy


def _copy(module: nn.Module) -> nn.Module:
    """Return a copy that shares everything with a module but what was put around its `forward` (`WRAPPED`)."""
    copy = object.__new__(type(module))
    vars(copy).update(vars(module))
    for name in WRAPPED:
        vars(copy).pop(name, None)
    return copy

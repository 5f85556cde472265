"""Watch one call of a network of any class: which operations ran, in which modules, and what each of them read.

Operations are numbered in the order in which they ran. An operation reads a tensor from the operation that made it, and
from the last one that wrote into the tensor's memory since. Memory alone would not do: views and reused memory would
join operations that have nothing to do with each other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from deepcache.unets.calls import sample_of
from deepcache.unets.output import Form

_READS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero")  # operations whose results Python may branch on
Numbers = frozenset[int]


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: it ran the operations `start` .. `stop` - 1.

    Attributes:
        module: the module.
        start, stop: numbers of operations.
        depth: how many other modules the call is nested in, besides the network.
        makers: for each tensor in its output, the number of the operation whose result it is; None for no operation.
    """

    module: nn.Module
    start: int
    stop: int
    depth: int
    makers: tuple[int | None, ...]

    @property
    def operations(self) -> range:
        return range(self.start, self.stop)


@dataclass
class Graph:
    """The operations of one call.

    Attributes:
        reads: for each operation the operations whose results it reads; an input reads nothing.
        products: for each operation its multiplications, those of convolutions, linear layers and attention.
        calls: the calls of modules, in the order in which they ended.
        inputs: the numbers of the inputs.
        sample: the number of the input that is denoised.
        ends: the operations that make the output.
        choices: the operations whose results Python read; the network's code may have branched on them.
        is_random: whether an operation drew random numbers.
    """

    reads: list[Numbers] = field(default_factory=list)
    products: list[int] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    inputs: set[int] = field(default_factory=set)
    sample: int = 0
    ends: set[int] = field(default_factory=set)
    choices: set[int] = field(default_factory=set)
    is_random: bool = False

    def needed(self, ends: Iterable[int], given: int | None = None) -> set[int]:
        """Return the operations that the results of `ends` need where the result of the operation `given` is known."""
        found, left = {given}, list(ends)
        while left:
            number = left.pop()
            if number not in found:
                found.add(number)
                left.extend(self.reads[number])
        return found - {given}  # type: ignore[return-value]

    def readers(self) -> list[list[int]]:
        """Return for each operation those that read its result."""
        found: list[list[int]] = [[] for _ in self.reads]
        for number, reads in enumerate(self.reads):
            for other in reads:
                found[other].append(number)
        return found


class _Watch(TorchDispatchMode):
    """Fills a graph while a network runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self._made: Any = WeakIdKeyDictionary()  # the operation that made a tensor
        self._written: dict[StorageWeakRef, int] = {}  # the last operation that wrote into a memory in place
        self._stack: list[tuple[nn.Module, int]] = []
        self._thread = threading.get_ident()

    def sources(self, tensor: Tensor) -> Numbers:
        """Return the operations from which an operation that reads the tensor takes its values."""
        found = (self._made.get(tensor), self._written.get(_memory(tensor)))
        return frozenset(number for number in found if number is not None)

    def source(self, tensor: Tensor) -> int | None:
        """Return the last of the sources."""
        return max(self.sources(tensor), default=None)

    def add(self, reads: Numbers, products: int, made: Iterable[Tensor]) -> int:
        """Add an operation and what it made, and return its number."""
        number = len(self.graph.reads)
        self.graph.reads.append(reads)
        self.graph.products.append(products)
        for tensor in made:
            self._made[tensor] = number
        return number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        read, made = _tensors((args, kwargs)), _tensors(output)
        reads = frozenset(number for tensor in read for number in self.sources(tensor))
        count = flop_registry.get(func._overloadpacket)
        products = int(count(*args, **kwargs, out_val=output)) // 2 if count else 0
        number = self.add(reads, products, made)
        if func._schema.is_mutable:
            for tensor in _written(func, args, kwargs):
                memory = _memory(tensor)
                self._written[memory] = number
        if func._overloadpacket._qualified_op_name.partition("::")[2] in _READS:
            self.graph.choices.add(number)
        self.graph.is_random |= torch.Tag.nondeterministic_seeded in func.tags
        return output

    def before(self, module: nn.Module, _args: Any) -> None:
        if threading.get_ident() != self._thread:  # hooks hear of the modules of all threads
            return
        self._stack.append((module, len(self.graph.reads)))

    def after(self, module: nn.Module, _args: Any, output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        _, start = self._stack.pop()
        makers = tuple(self.source(tensor) for tensor in _tensors(output))
        self.graph.calls.append(ModuleCall(module, start, len(self.graph.reads), len(self._stack), makers))


def watch(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """Run a network once, and return the graph of its operations.

    Args:
        network: a network; on the meta device it computes nothing but shapes.
        args, kwargs: the arguments of its `forward`, the sample among them (`sample_of`).

    Raises:
        DeepCacheError: no argument can be the sample, or no tensor comes out.
    """
    watching = _Watch()
    given = _tensors((args, kwargs))
    inputs = {id(tensor): watching.add(frozenset(), 0, [tensor]) for tensor in given}
    watching.graph.inputs.update(inputs.values())
    with torch.no_grad(), _hooked(watching), watching, _Reads(watching):
        output = type(network).forward(network, *args, **kwargs)
    ends = Form.of(output)[1]
    watching.graph.sample = inputs[id(sample_of(args, kwargs, ends[0]))]
    for tensor in ends:
        watching.graph.ends.update(watching.sources(tensor))
    return watching.graph


class _Reads(TorchFunctionMode):
    """Tells a watch of values that go to Python without an operation."""

    def __init__(self, watching: _Watch) -> None:
        super().__init__()
        self._watching = watching

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            self._watching.graph.choices.update(self._watching.sources(args[0]))
        return func(*args, **(kwargs or {}))


@contextmanager
def _hooked(watching: _Watch) -> Iterator[None]:
    """Inside the block, tell the watch which modules are called."""
    handles = [register_module_forward_pre_hook(watching.before), register_module_forward_hook(watching.after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> StorageWeakRef:
    """Return a reference to a tensor's memory; as long as it is kept, no other memory equals it."""
    return StorageWeakRef(tensor.untyped_storage())


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an operation writes into."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[place] if place < len(args) else kwargs.get(argument.name))

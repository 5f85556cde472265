"""Steps as CUDA graphs: captured once for each shape of their inputs, then replayed by one launch instead of hundreds.

A graph reads and writes memory of its own. So what goes in is copied into buffers, and what comes out is copied out of
them, before the next replay. Every argument that is no tensor is part of the graph: where it differs, so does the
graph. So are the places of the weights: where one has moved, or LoRA's have come, all graphs are made anew.

References: Accelerating PyTorch with CUDA Graphs, https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from deepcache.errors import DeepCacheError
from deepcache.forward import with_tensor_timestep
from deepcache.steps import Steps
from deepcache.views import Feature

KEPT = 16  # graphs of a block: the least recently used goes
_WARM_UP = 3  # runs before a capture


@dataclass(frozen=True, eq=False)
class _Graph:
    name: str
    structure: Any
    marks: list[Any]
    buffers: list[Tensor]
    replay: Callable[[], None]
    output: Any

    def __call__(self, tensors: list[Tensor]) -> Any:
        for buffer, tensor in zip(self.buffers, tensors, strict=True):
            buffer.copy_(tensor)
        self.replay()
        return tree_map_only(Tensor, torch.clone, self.output)


class GraphedSteps:
    """Steps, eager or compiled, as graphs. What is no weight is as it was at the capture: FreeU, an adapter's scale.

    Threads take turns, on whatever streams they are. Where gradients are recorded, which no graph can, the steps run
    as they are.
    """

    def __init__(self, unet: Any, steps: Steps, device: torch.device) -> None:
        self._unet, self._steps, self._device = unet, steps, device
        self._recorder = Recorder(device)
        self._graphs: list[_Graph] = []  # the last used first
        self._weights: list[int] = []
        self._turn = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Memory of the device that the graphs hold: their buffers, and what their kernels need."""
        buffers = sum(each.numel() * each.element_size() for graph in self._graphs for each in graph.buffers)
        return buffers + self._recorder.num_bytes

    def release(self) -> None:
        """Drop the graphs and their memory."""
        with self._turn:
            self._forget()

    def full(self, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
        return self._run("full", *with_tensor_timestep(self._unet, args, kwargs))  # type: ignore[no-any-return]

    def shallow(self, feature: Feature, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = with_tensor_timestep(self._unet, args, kwargs)
        return self._run("shallow", (feature, *args), kwargs)

    def _run(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.is_grad_enabled():
            return getattr(self._steps, name)(*args, **kwargs)
        leaves, structure = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        marks: list[Any] = [_autocast(self._device), *map(_mark, leaves)]
        with self._turn, self._recorder.turn():
            if name == "full":  # not on every step: walking through the modules takes as long as some launches
                self._follow_weights()
            graph = self._found(name, structure, marks) or self._captured(name, structure, marks, leaves)
            self._graphs = [graph, *(other for other in self._graphs if other is not graph)][:KEPT]
            return graph(tensors)

    def _found(self, name: str, structure: Any, marks: list[Any]) -> _Graph | None:
        for graph in self._graphs:
            if graph.name == name and graph.marks == marks and graph.structure == structure:
                return graph
        return None

    def _captured(self, name: str, structure: Any, marks: list[Any], leaves: list[Any]) -> _Graph:
        step = getattr(self._steps, name)
        with torch.inference_mode(mode=False), torch.no_grad(), _uncached_autocast(self._device):
            own = [self._buffer(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]

            def run() -> Any:
                args, kwargs = tree_unflatten(own, structure)  # anew: diffusers empties the lists that it is given
                return step(*args, **kwargs)

            self._recorder.warm_up(run)
            try:
                replay, output = self._recorder.capture(run)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise DeepCacheError(
                    f"this U-Net's {name} step cannot be captured as a CUDA graph: {str(error).splitlines()[0]}; leave "
                    "cuda_graphs out, or take compile='reduce-overhead'"
                ) from error
        return _Graph(name, structure, marks, [leaf for leaf in own if isinstance(leaf, Tensor)], replay, output)

    def _follow_weights(self) -> None:
        weights = [parameter.data_ptr() for parameter in self._unet.parameters()]
        if weights != self._weights:
            self._forget()
            self._weights = weights

    def _forget(self) -> None:
        if self._graphs:
            self._recorder.leave_pool()
            self._graphs = []

    def _buffer(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=self._device).copy_(tensor)


class Recorder:
    """Records CUDA graphs of a device on one stream, in one pool of memory: they never run at the same time.

    Attributes:
        num_bytes: of the pool.
    """

    def __init__(self, device: torch.device) -> None:
        self.num_bytes = 0
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._done = torch.cuda.Event()
            self._stream = torch.cuda.Stream(device)

    def turn(self) -> AbstractContextManager[None]:
        """Within the block, the current stream has waited for the turn before, whichever stream that was on."""
        return _Turn(self._device, self._done)

    def warm_up(self, run: Callable[[], Any]) -> None:
        """Libraries choose their kernels, and allocate what they keep."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):
                run()
        current.wait_stream(self._stream)

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """What replays the run, and the output that each replay writes."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            output = run()
        self.num_bytes += max(0, torch.cuda.memory_reserved(self._device) - before)
        return graph.replay, output

    def leave_pool(self) -> None:
        """To the graphs that had it, of which none runs any longer; others get another."""
        torch.cuda.synchronize(self._device)
        self._pool, self.num_bytes = torch.cuda.graph_pool_handle(), 0


class _Turn:
    def __init__(self, device: torch.device, done: torch.cuda.Event) -> None:
        self._device, self._done = device, done

    def __enter__(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._done)

    def __exit__(self, *_: object) -> None:
        self._done.record(torch.cuda.current_stream(self._device))


def graphed_device(unet: Any) -> torch.device:
    """Where a U-Net's graphs may run.

    Raises:
        DeepCacheError: not on a CUDA device, or its weights move.
    """
    device: torch.device = unet.device
    if device.type != "cuda":
        raise DeepCacheError(f"expected a U-Net on a CUDA device for cuda_graphs, got {device}; leave it out there")
    if "_hf_hook" in vars(unet):
        raise DeepCacheError(
            "expected a U-Net that is not offloaded for cuda_graphs, since its weights move; leave it out"
        )
    return device


def _mark(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _autocast(device: torch.device) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)


def _uncached_autocast(device: torch.device) -> torch.autocast:
    """As it is, without its cache of weights, which goes before the graph does."""
    enabled, dtype = _autocast(device)
    return torch.autocast(device.type, dtype=dtype, enabled=enabled, cache_enabled=False)

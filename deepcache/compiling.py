"""The two steps as two static graphs, by `torch.compile`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

import torch

from deepcache.errors import DeepCacheError
from deepcache.forward import live_residuals, run_full, run_shallow, with_tensor_timestep
from deepcache.graphs import GraphedSteps, graphed_device
from deepcache.steps import EagerSteps, Steps
from deepcache.views import Cut, Feature, full_view, shallow_view

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
CAPTURING = ("reduce-overhead", "max-autotune")
Compile = str | Mapping[str, Any] | None
_NUMBERS = count()
Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


class CompiledSteps:
    """The kernel as two graphs. They are of the U-Net as it was: load LoRA or enable FreeU before.

    Threads take turns, since a step that torch runs eagerly after all keeps its feature in the view for a moment.
    """

    num_bytes = 0  # torch tells none of its own graphs

    def __init__(self, unet: Any, cut: Cut, compiler: Compiler) -> None:
        self._unet, self._cut, self._turn = unet, cut, threading.Lock()
        self._run_full = compiler(_bound(run_full, *full_view(unet, cut)))
        self._run_shallow = compiler(_bound(run_shallow, *shallow_view(unet, cut)))

    def full(self, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
        args, kwargs = with_tensor_timestep(self._unet, args, kwargs)
        with self._turn:
            torch.compiler.cudagraph_mark_step_begin()
            output, feature = self._run_full(*args, **kwargs)
            return _own(output), tuple(part.clone() for part in feature) if feature[0].is_cuda else feature

    def shallow(self, feature: Feature, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = live_residuals(self._unet, self._cut, *with_tensor_timestep(self._unet, args, kwargs))
        with self._turn:
            torch.compiler.cudagraph_mark_step_begin()
            return _own(self._run_shallow(feature, *args, **kwargs))

    def release(self) -> None:
        """Torch keeps its graphs as long as these steps are there."""


def steps(unet: Any, cut: Cut, compiler: Compiler | None, *, cuda_graphs: bool = False) -> Steps:
    """The steps that `cached` runs.

    Raises:
        DeepCacheError: CUDA graphs of a U-Net that is not on such a device, or whose weights move.
    """
    found: Steps = EagerSteps(unet, cut) if compiler is None else CompiledSteps(unet, cut, compiler)
    return GraphedSteps(unet, found, graphed_device(unet)) if cuda_graphs else found


def compiler(how: Compile, *, cuda_graphs: bool = False) -> Compiler | None:
    """What compiles a step.

    Args:
        how: a mode of `torch.compile`, its keyword arguments, or None for none.
        cuda_graphs: whether what is compiled is captured then, which some modes do themselves.

    Raises:
        DeepCacheError: something else, or two who would capture.
    """
    mode = how.get("mode") if isinstance(how, Mapping) else how
    if cuda_graphs and mode in CAPTURING:
        raise DeepCacheError(
            f"compile={mode!r} makes CUDA graphs itself; leave cuda_graphs out, or take 'default' or "
            "'max-autotune-no-cudagraphs'"
        )
    if how is None:
        return None
    if isinstance(how, Mapping):
        return partial(torch.compile, **{"dynamic": False, **how})
    if how not in MODES:
        raise DeepCacheError(
            f"expected compile to be one of {', '.join(MODES)}, or a dict of torch.compile's arguments, got {how!r}"
        )
    return partial(torch.compile, mode=how, dynamic=False)


def compiler_of(outer: Any) -> Compiler | None:
    """What compiled a U-Net already, by `torch.compile(unet)` or `unet.compile()`; None where nothing did."""
    in_place = getattr(outer, "_compiled_call_impl", None)
    if in_place is None:
        return getattr(outer, "dynamo_ctx", None)
    for name, cell in zip(in_place.__code__.co_freevars, in_place.__closure__, strict=True):
        if name == "self":  # the context that torch.compile made; torch has no public way to it
            return cell.cell_contents  # type: ignore[no-any-return]
    return compiler("default")


def _bound(run: Callable[..., Any], view: Any, gate: Any) -> Callable[..., Any]:
    def step(*args: Any, **kwargs: Any) -> Any:
        return run(view, gate, *args, **kwargs)

    # code of its own: torch keeps eight graphs of one code, whichever function has it, and then runs it eagerly
    step.__code__ = step.__code__.replace(co_name=f"{run.__name__}_{next(_NUMBERS)}")
    return step


def _own(output: Any) -> Any:
    """A copy on a GPU, where the next replay of a CUDA graph overwrites the output: multistep solvers keep some."""
    if isinstance(output, tuple):
        return tuple(part.clone() if part.is_cuda else part for part in output)
    if output.sample.is_cuda:
        output.sample = output.sample.clone()
    return output

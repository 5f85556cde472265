"""The two steps of a cached U-Net, eager or as two static graphs; which of them runs is decided outside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.forward import full_forward, live_residuals, named, replaced, run_full, run_shallow, shallow_forward
from deepcache.views import Cut, Feature, full_view, shallow_view

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
Compile = str | Mapping[str, Any] | None
Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


class EagerSteps:
    """The kernel on one U-Net and cut; nothing is kept between calls, so threads may share it."""

    def __init__(self, unet: Any, cut: Cut) -> None:
        shallow_view(unet, cut)  # refuses hooks on the blocks that the branch cuts, before anything runs
        self.full = partial(full_forward, unet, cut)
        self.shallow = partial(shallow_forward, unet, cut)


class CompiledSteps:
    """The kernel as two graphs. They are of the U-Net as it was: load LoRA or enable FreeU before.

    Threads take turns, since a step that torch runs eagerly after all keeps its feature in the view for a moment.
    """

    def __init__(self, unet: Any, cut: Cut, compiler: Compiler) -> None:
        self._unet, self._cut, self._turn = unet, cut, threading.Lock()
        self._run_full = compiler(_bound(run_full, *full_view(unet, cut)))
        self._run_shallow = compiler(_bound(run_shallow, *shallow_view(unet, cut)))

    def full(self, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
        args, kwargs = self._static(args, kwargs)
        with self._turn:
            torch.compiler.cudagraph_mark_step_begin()
            output, feature = self._run_full(*args, **kwargs)
            return _own(output), tuple(part.clone() for part in feature) if feature[0].is_cuda else feature

    def shallow(self, feature: Feature, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = live_residuals(self._unet, self._cut, *self._static(args, kwargs))
        with self._turn:
            torch.compiler.cudagraph_mark_step_begin()
            return _own(self._run_shallow(feature, *args, **kwargs))

    def _static(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """With the timestep as a tensor: a number would be a constant of the graph, and every step another graph."""
        timestep = named(self._unet, args, kwargs).get("timestep")
        if timestep is None or isinstance(timestep, Tensor):
            return args, kwargs
        if isinstance(self._unet, UNet2DModel):
            timestep = int(timestep)  # as its forward cuts it
        kind = torch.float64 if isinstance(timestep, float) else torch.int64
        return replaced(self._unet, args, kwargs, {"timestep": torch.tensor(timestep, dtype=kind)})


def steps(unet: Any, cut: Cut, compiler: Compiler | None) -> EagerSteps | CompiledSteps:
    """The steps that `cached` runs."""
    return EagerSteps(unet, cut) if compiler is None else CompiledSteps(unet, cut, compiler)


def compiler(how: Compile) -> Compiler | None:
    """What compiles a step.

    Args:
        how: a mode of `torch.compile`, its keyword arguments, or None for none.

    Raises:
        DeepCacheError: something else.
    """
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

    return step


def _own(output: Any) -> Any:
    """A copy on a GPU, where the next replay of a CUDA graph overwrites the output: multistep solvers keep some."""
    if isinstance(output, tuple):
        return tuple(part.clone() if part.is_cuda else part for part in output)
    if output.sample.is_cuda:
        output.sample = output.sample.clone()
    return output

"""The two steps as two static graphs, by `torch.compile`."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

import torch

from deepcache.cache.steps import EagerSteps, Steps
from deepcache.errors import DeepCacheError, first_line
from deepcache.unets.diffusers.forward import live_residuals, run_full, run_shallow, with_tensor_timestep
from deepcache.unets.diffusers.views import Cut, Feature, full_view, shallow_view

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
OPTIONS = tuple(inspect.signature(torch.compile).parameters)[1:]
Compile = str | Mapping[str, Any] | None
Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
_NUMBERS = count()


class CompiledSteps:
    """The kernel as two graphs, of views that are made anew on every step.

    The compiler looks at a view as at any module: it compiles again where FreeU, an adapter or another layer has come
    or gone, as it does for the U-Net itself.

    Threads take turns, since a step that torch runs eagerly after all keeps its feature in the view for a moment.
    """

    def __init__(self, unet: Any, cut: Cut, compiler: Compiler) -> None:
        shallow_view(unet, cut)  # refuses hooks on the blocks that the branch cuts, before anything runs
        self._unet, self._cut, self._turn = unet, cut, threading.Lock()
        self._run_full = compiler(_of_its_own(run_full))
        self._run_shallow = compiler(_of_its_own(run_shallow))

    def full(self, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
        args, kwargs = with_tensor_timestep(self._unet, args, kwargs)
        with self._turn:
            torch.compiler.cudagraph_mark_step_begin()
            output, feature = self._run_full(*full_view(self._unet, self._cut), *args, **kwargs)
            return _own(output), tuple(part.clone() for part in feature) if feature[0].is_cuda else feature

    def shallow(self, feature: Feature, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = live_residuals(self._unet, self._cut, *with_tensor_timestep(self._unet, args, kwargs))
        with self._turn:
            torch.compiler.cudagraph_mark_step_begin()
            return _own(self._run_shallow(*shallow_view(self._unet, self._cut), feature, *args, **kwargs))


def steps(unet: Any, cut: Cut, compiler: Compiler | None) -> Steps:
    """Return the steps that `cached` runs.

    Args:
        unet: the U-Net.
        cut: where the branch cuts it.
        compiler: compiles a step; None for eager steps.
    """
    return EagerSteps(unet, cut) if compiler is None else CompiledSteps(unet, cut, compiler)


def compiler(how: Compile) -> Compiler | None:
    """Return what compiles a step, or None for nothing.

    Args:
        how: a mode of `torch.compile`, a dict of its keyword arguments, or None.

    Raises:
        DeepCacheError: `how` is something else, or has an argument that `torch.compile` does not take.
    """
    if how is None:
        return None
    if isinstance(how, Mapping):
        if unknown := [name for name in how if name not in OPTIONS]:
            raise DeepCacheError(
                f"expected compile to have arguments of torch.compile ({', '.join(OPTIONS)}), got {unknown[0]!r}"
            )
        return _checked(partial(torch.compile, **{"dynamic": False, **how}))
    if how not in MODES:
        raise DeepCacheError(
            f"expected compile to be one of {', '.join(MODES)}, or a dict of torch.compile's arguments, got {how!r}"
        )
    return partial(torch.compile, mode=how, dynamic=False)


def _checked(compiler: Compiler) -> Compiler:
    """Return a compiler that refuses arguments which do not go together before anything runs."""

    def compiled(step: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return compiler(step)
        except Exception as error:
            raise DeepCacheError(
                f"torch.compile does not take these arguments: {first_line(error)}; correct compile"
            ) from error

    return compiled


def compiler_of(outer: Any) -> Compiler | None:
    """What compiled a U-Net already, by `torch.compile(unet)` or `unet.compile()`; None where nothing did."""
    in_place = getattr(outer, "_compiled_call_impl", None)
    if in_place is None:
        return getattr(outer, "dynamo_ctx", None)
    for name, cell in zip(in_place.__code__.co_freevars, in_place.__closure__, strict=True):
        if name == "self":  # the context that torch.compile made; torch has no public way to it
            return cell.cell_contents  # type: ignore[no-any-return]
    return compiler("default")


def _of_its_own(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with code of its own: torch keeps eight graphs of one code, and then runs it eagerly."""

    def step(*args: Any, **kwargs: Any) -> Any:
        return run(*args, **kwargs)

    step.__code__ = step.__code__.replace(co_name=f"{run.__name__}_{next(_NUMBERS)}")
    return step


def _own(output: Any) -> Any:
    """A copy on a GPU, where the next replay of a CUDA graph overwrites the output: multistep solvers keep some."""
    if isinstance(output, tuple):
        return tuple(part.clone() if part.is_cuda else part for part in output)
    if output.sample.is_cuda:
        output.sample = output.sample.clone()
    return output

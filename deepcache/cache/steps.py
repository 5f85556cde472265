"""Compiles the two steps of a cut U-Net as two static graphs; eager steps are the cut U-Net's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from deepcache.errors import DeepCacheError, first_line
from deepcache.unets.family import CutUNet, Feature

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
Compile = str | Mapping[str, Any] | None
Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
_NUMBERS = count()


class CompiledSteps:
    """The two steps as two graphs, of arguments that the cut U-Net makes anew on every step.

    The compiler looks at these arguments as at any module: it compiles again where FreeU, an adapter or another layer
    has come or gone. Threads take turns, because a step that torch runs eagerly keeps its feature in the view.
    """

    def __init__(self, cut: CutUNet, compiler: Compiler) -> None:
        self._cut, self._turn = cut, threading.Lock()
        self._run_full = compiler(_with_own_code(cut.run_full))
        self._run_shallow = compiler(_with_own_code(cut.run_shallow))
        self.require_inputs = cut.require_inputs

    def full(self, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
        with self._turn:
            args, kwargs = self._cut.full_call(args, kwargs)
            torch.compiler.cudagraph_mark_step_begin()
            output, feature = self._run_full(*args, **kwargs)
            return self._kept(output), _cloned(feature)

    def shallow(self, feature: Feature, *args: Any, **kwargs: Any) -> Any:
        with self._turn:
            args, kwargs = self._cut.shallow_call(feature, args, kwargs)
            torch.compiler.cudagraph_mark_step_begin()
            return self._kept(self._run_shallow(*args, **kwargs))

    def _kept(self, output: Any) -> Any:
        """Return an output that the next step does not overwrite; multistep solvers keep some outputs."""
        return self._cut.with_tensors(output, _cloned(self._cut.tensors_of(output)))


def _cloned(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copy tensors on a GPU, where the next replay of a CUDA graph overwrites its outputs."""
    return tuple(tensor.clone() if tensor.is_cuda else tensor for tensor in tensors)


def compiler(how: Compile) -> Compiler | None:
    """Return the function that compiles a step in a mode or with a dict of arguments; None for eager steps."""
    if how is None:
        return None
    if not isinstance(how, Mapping):
        if how not in MODES:
            raise DeepCacheError(
                f"expected compile to be one of {', '.join(MODES)}, or a dict of torch.compile's arguments, got {how!r}"
            )
        how = {"mode": how}
    return partial(_compiled, options={"dynamic": False, **how})


def _compiled(step: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """Compile a step, or refuse arguments that torch does not know or that do not go together; nothing has run yet."""
    try:
        return torch.compile(step, **options)
    except Exception as error:
        raise DeepCacheError(
            f"torch.compile does not take these arguments: {first_line(error)}; correct compile"
        ) from error


def compiler_of(outer: Any) -> Compiler | None:
    """Return the compiler of a U-Net that `torch.compile(unet)` or `unet.compile()` has compiled; None without."""
    in_place = getattr(outer, "_compiled_call_impl", None)
    if in_place is None:
        return getattr(outer, "dynamo_ctx", None)
    for name, cell in zip(in_place.__code__.co_freevars, in_place.__closure__, strict=True):
        if name == "self":  # the context that torch.compile made; torch has no public way to it
            return cell.cell_contents  # type: ignore[no-any-return]
    return compiler("default")


def _with_own_code(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with code of its own: torch keeps eight graphs for one code, and then runs it eagerly."""

    def step(*args: Any, **kwargs: Any) -> Any:
        return run(*args, **kwargs)

    step.__code__ = step.__code__.replace(co_name=f"{run.__name__}_{next(_NUMBERS)}")
    return step

"""Watches one uncached batch of samples: outputs, features, and what stale features would have done to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcache.cache.installing import install, uninstall
from deepcache.cache.prediction import coordinate
from deepcache.errors import DeepCacheError
from deepcache.search.responses import Responses
from deepcache.unets.family import Feature
from deepcache.unets.pipelines import unet_of
from deepcache.unets.registry import cut

SKETCH = 512  # numbers of a sample that are kept of a response
NUDGE = 0.25  # of the way to an older feature: small enough for the first order, large enough against rounding


class Recorder:
    """Answers the U-Net's calls in full. A step may need several calls: guidance.

    Attributes:
        outputs, stale: of each step and call what the U-Net gave, and what it gives with the step before's feature.
        stale_errors: (B,) a step, the norm of their difference as the solver gets it.
        last: the latents of the last step.
    """

    def __init__(self, unet: Any, branch: int) -> None:
        self._cut, self._branch = cut(unet, branch), branch
        self._features: list[list[Feature]] = []
        self._own: list[Feature] = []  # of this step, one a call
        self._responses: list[list[Tensor]] = []  # of this step: a call, then a step before it
        self._vectors: list[NDArray[np.float32]] = []
        self._sketch: Sketch | None = None
        self._timesteps: list[float] = []
        self.outputs: list[list[Any]] = [[]]
        self.stale: list[list[Any]] = [[]]
        self.stale_errors: list[Tensor] = []
        self.last: Tensor = torch.empty(0)

    @classmethod
    def of(cls, pipe: Any, generate: Callable[[], Any], branch: int) -> Recorder:
        """Of one run.

        Raises:
            DeepCacheError: fewer than two steps of the pipeline's U-Net.
        """
        recorder = cls(unet_of(pipe)[1], branch)
        answered(recorder, pipe, generate)
        if recorder.num_steps < 2:
            raise DeepCacheError(f"expected a generation of at least 2 steps, saw {recorder.num_steps}")
        return recorder

    @property
    def num_steps(self) -> int:
        return len(self._vectors)

    def responses(self) -> Responses:
        return Responses(tuple(self._vectors), np.array(self._timesteps), self._branch)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output, feature = self._cut.full(*args, **kwargs)
        number, noise = len(self.outputs[-1]), _noise(output)
        responses, stale = [], output
        for features in self._features:
            nudged = tuple(torch.lerp(own, other, NUDGE) for own, other in zip(feature, features[number], strict=True))
            found = self._cut.shallow(nudged, *args, **kwargs)
            responses.append((_noise(found) - noise) / NUDGE)
        if self._features:
            stale = self._cut.shallow(self._features[-1][number], *args, **kwargs)
        if number == 0:
            self._timesteps.append(float(torch.as_tensor(coordinate(_timestep(args, kwargs))).reshape(-1)[0]))
            self._own = []
        self._own.append(feature)
        self._responses.append(responses)
        self.outputs[-1].append(output)
        self.stale[-1].append(stale)
        return output

    def solved(self, model_output: Tensor, latents: Tensor) -> None:
        """The solver has what it wanted of a step: guidance's weights follow from it."""
        count = len(model_output)
        parts = [part for output in self.outputs[-1] for part in _noise(output).split(count)]
        weights = _combination(parts, model_output)
        stale = [part for output in self.stale[-1] for part in _noise(output).split(count)]
        error = sum(w * (a - b) for w, a, b in zip(weights, stale, parts, strict=True))
        self.stale_errors.append(torch.as_tensor(error).flatten(1).double().norm(dim=1))
        sketch = self._sketch = self._sketch or Sketch(model_output)
        rows = np.zeros((len(self._features), count, sketch.size), np.float32)
        for step in range(len(self._features)):
            pieces = [part for responses in self._responses for part in responses[step].split(count)]
            rows[step] = sketch(torch.as_tensor(sum(w * piece for w, piece in zip(weights, pieces, strict=True))))
        self._vectors.append(rows)
        self._features.append(self._own)
        self._responses = []
        self.outputs.append([])
        self.stale.append([])
        self.last = latents


class Answering(Protocol):
    """Answers a U-Net's calls, and hears what the solver makes of them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def solved(self, model_output: Tensor, latents: Tensor) -> None: ...


def answered(by: Answering, pipe: Any, generate: Callable[[], Any]) -> None:
    """A run of the pipeline whose U-Net another answers for."""
    outer, unet = unet_of(pipe)
    installed = install(unet, outer, by)
    try:
        with torch.no_grad(), listening(pipe.scheduler, by.solved):
            generate()
    finally:
        uninstall(installed, by)


@contextmanager
def listening(scheduler: Any, listener: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Within the block, the listener hears what the solver is given at each step, and the latents that it makes."""
    step = scheduler.step

    @wraps(step)  # pipelines look in its signature for the arguments that it takes
    def heard(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        found = step(model_output, *args, **kwargs)
        listener(model_output, found[0] if isinstance(found, tuple) else found.prev_sample)
        return found

    scheduler.step = heard
    try:
        yield
    finally:
        del scheduler.step


class Sketch:
    """Few numbers of a sample, whose norms and products are its own but for some 1 / sqrt(size) of them.

    References: Extensions of Lipschitz mappings into a Hilbert space (Johnson and Lindenstrauss, 1984)
    """

    def __init__(self, like: Tensor) -> None:
        num_values = like[0].numel()
        self.size = min(num_values, SKETCH)
        self._matrix: Tensor | None = None
        if num_values > SKETCH:
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randn(num_values, SKETCH, generator=generator) / SKETCH**0.5
            self._matrix = drawn.to(like.device)

    def __call__(self, samples: Tensor) -> NDArray[np.float32]:
        """(B, D) of samples (B, ...)."""
        flat = samples.flatten(1).float()
        return (flat if self._matrix is None else flat @ self._matrix).cpu().numpy()


def _combination(parts: Sequence[Tensor], whole: Tensor) -> list[float]:
    """The numbers c with whole = sum c_i part_i, by least squares: 1, or guidance's."""
    columns = torch.stack([part.flatten() for part in parts], dim=1).double()
    solution = torch.linalg.lstsq(columns, whole.flatten().double()[:, None]).solution
    return solution[:, 0].tolist()  # type: ignore[no-any-return]


def _noise(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output.sample  # type: ignore[no-any-return]


def _timestep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[1] if len(args) > 1 else kwargs["timestep"]

"""What one uncached batch of samples tells: the responses to stale features, and the gains with which errors carry on.

The response of step j to step i is u_i = (S_j(f_j + s (f_i - f_j)) - S_j(f_j)) / s after guidance, where S_j(f) is the
output of the shallow step j with the feature f. A prediction sum_i l_i f_i then errs by sum_i l_i u_i (docs/plans.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcache.cache.installing import Handler, install, uninstall
from deepcache.errors import DeepCacheError
from deepcache.plan import IDLE
from deepcache.unets.calls import timestep_of
from deepcache.unets.family import Feature
from deepcache.unets.output import Form
from deepcache.unets.pipelines import unet_of
from deepcache.unets.registry import cut

Array = NDArray[np.float64]
Vectors = NDArray[np.float32]
Listener = Callable[[Tensor, Tensor], object]  # takes what the solver is given and the latents that it makes
SKETCH = 512  # numbers that are kept of one sample's response
NUDGE = 0.25  # share of the way to an older feature: small enough for first order, large enough against rounding
NUM_PROBES = 9  # steps at which gains are measured
_LAST = 3  # the last steps, which are all probed
_LEAST = 1e-8  # least gain, since logarithms are interpolated


@dataclass(frozen=True, eq=False)
class Responses:
    """The responses of a pipeline at a branch.

    Attributes:
        vectors: for step j the responses to all earlier steps, (j, B, D), projected to D numbers a sample.
        timesteps: (T,), the coordinate of the predictions.
        branch: branch of the features.
    """

    vectors: tuple[Vectors, ...]
    timesteps: Array
    branch: int

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def error(self, nodes: Sequence[int], step: int) -> Vectors:
        """Return the error in a step's predicted noise, (B, D); `nodes` are the last full steps, newest first."""
        weights = self._weights(nodes, step).astype(np.float32)
        found: Vectors = np.tensordot(weights, self.vectors[step][list(nodes)], 1)
        return found

    def squared_error(self, nodes: Sequence[int], step: int, of: Array) -> float:
        """Return the squared norm of `error`, averaged over samples; `of` is what `products` gives."""
        weights = self._weights(nodes, step)
        return max(0.0, float(weights @ of[step][np.ix_(nodes, nodes)] @ weights))

    def products(self, gains: Array) -> Array:
        """Return (T, T, T): at step j the products of the responses to i and i', weighted by squared gains (T, B)."""
        found = np.zeros((self.num_steps,) * 3)
        for step, vectors in enumerate(self.vectors):
            size = gains.shape[1] * vectors.shape[-1]
            flat = (vectors * gains[step][:, None]).reshape(step, size).astype(np.float64)
            found[step, :step, :step] = flat @ flat.T / max(1, gains.shape[1])
        return found

    def _weights(self, nodes: Sequence[int], step: int) -> Array:
        """Return the weight of each node; where timesteps of nodes repeat, predictions go by the steps' numbers."""
        places = self.timesteps[list(nodes)]
        if len(set(places)) < len(nodes):
            return lagrange(np.array(nodes, np.float64), step)
        return lagrange(places, self.timesteps[step])


def lagrange(nodes: Array, at: float) -> Array:
    """Return the weights, of sum 1, with which a polynomial's values at the nodes give its value at a place."""
    apart = nodes[:, None] - nodes[None]
    ratios = (at - nodes[None]) / np.where(apart == 0, 1.0, apart)
    weights: Array = np.where(np.eye(len(nodes), dtype=bool), 1.0, ratios).prod(axis=1)
    return weights


class Recorder:
    """Answers the U-Net's calls in full and records them; a step may have several calls, for guidance.

    Attributes:
        outputs: the U-Net's output for each step and call.
        stale: the output with the feature of the step before, for each step and call.
        stale_errors: (B,) for each step, the norm of their difference after guidance.
        last: the latents after the last step.
    """

    def __init__(self, unet: Any, branch: int) -> None:
        self._unet, self._cut, self._branch = unet, cut(unet, branch), branch
        self._features: list[list[Feature]] = [[]]  # by step and call
        self._responses: list[list[Tensor]] = []  # this step's, by call and earlier step
        self._vectors: list[Vectors] = []
        self._sketch: Sketch | None = None
        self._timesteps: list[float] = []
        self.outputs: list[list[Any]] = [[]]
        self.stale: list[list[Any]] = [[]]
        self.stale_errors: list[Tensor] = []
        self.last: Tensor = torch.empty(0)

    @classmethod
    def of(cls, pipe: Any, generate: Callable[[], Any], branch: int) -> Recorder:
        """Record the generation that `generate` runs; refuse a generation of fewer than two steps."""
        recorder = cls(unet_of(pipe)[1], branch)
        answered(pipe, generate, recorder, recorder.solved)
        if len(recorder.stale_errors) < 2:
            raise DeepCacheError(f"expected a generation of at least 2 steps, saw {len(recorder.stale_errors)}")
        return recorder

    def responses(self) -> Responses:
        return Responses(tuple(self._vectors), np.array(self._timesteps), self._branch)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output, feature = self._cut.full(*args, **kwargs)
        form, tensors = Form.of(output)
        if self._branch == IDLE:
            feature = tensors

        def between(other: Feature) -> Any:
            """Return the output of a shallow or idle step with another feature."""
            return form.output(other) if self._branch == IDLE else self._cut.shallow(other, *args, **kwargs)

        number, noise, responses = len(self.outputs[-1]), self._noise(output), []
        if number == 0:
            timestep = timestep_of(self._unet, args, kwargs)
            timestep = len(self._timesteps) if timestep is None else timestep  # a call may have no timestep
            self._timesteps.append(float(torch.as_tensor(timestep).reshape(-1)[0]))
        earlier = [features[number] for features in self._features[:-1]]
        for older in earlier:
            nudged = tuple(torch.lerp(own, other, NUDGE) for own, other in zip(feature, older, strict=True))
            responses.append((self._noise(between(nudged)) - noise) / NUDGE)
        self._responses.append(responses)
        self._features[-1].append(feature)
        self.outputs[-1].append(output)
        self.stale[-1].append(between(earlier[-1]) if earlier else output)
        return output

    def solved(self, model_output: Tensor, latents: Tensor) -> None:
        """End a step: the solver was given `model_output`, from which the weights of guidance follow."""
        count = len(model_output)

        def split(calls: Iterable[Tensor]) -> tuple[Tensor, ...]:
            return tuple(torch.cat(list(calls)).split(count))

        def guided(calls: Iterable[Tensor]) -> Tensor:
            return torch.as_tensor(sum(weight * part for weight, part in zip(weights, split(calls), strict=True)))

        fresh, stale = (list(map(self._noise, outputs[-1])) for outputs in (self.outputs, self.stale))
        columns = torch.stack([part.flatten() for part in split(fresh)], dim=1).double()
        solution = torch.linalg.lstsq(columns, model_output.flatten().double()[:, None]).solution
        weights = solution[:, 0].tolist()  # of the calls in what the solver is given: 1, or the weights of guidance
        error = guided(after - before for after, before in zip(stale, fresh, strict=True))
        self.stale_errors.append(error.flatten(1).double().norm(dim=1))
        sketch = self._sketch = self._sketch or Sketch(model_output)
        rows = np.zeros((len(self._vectors), count, sketch.size), np.float32)
        for step in range(len(rows)):
            rows[step] = sketch(guided(responses[step] for responses in self._responses))
        self._vectors.append(rows)
        self._responses = []
        for by_step in (self._features, self.outputs, self.stale):
            by_step.append([])
        self.last = latents

    def _noise(self, output: Any) -> Tensor:
        return self._cut.tensors_of(output)[0]


def answered(pipe: Any, generate: Callable[[], Any], handler: Handler, listener: Listener) -> None:
    """Run `generate` while a handler answers the calls of the pipeline's U-Net and a listener hears the solver."""
    outer, unet = unet_of(pipe)
    installed = install(unet, outer, handler)
    try:
        with torch.no_grad(), listening(pipe.scheduler, listener):
            generate()
    finally:
        uninstall(installed, handler)


@contextmanager
def listening(scheduler: Any, listener: Listener) -> Iterator[None]:
    """Within the block, call `listener` at each step of the solver."""
    step = scheduler.step

    @wraps(step)  # pipelines read the signature of `step`
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
    """Projects samples to a few numbers, which keep norms and products to a relative error of some 1 / sqrt(size).

    References: Extensions of Lipschitz mappings into a Hilbert space (Johnson and Lindenstrauss, 1984)
    """

    def __init__(self, like: Tensor) -> None:
        num_values = like[0].numel()
        self.size = min(num_values, SKETCH)
        self._matrix: Tensor | None = None
        if num_values > SKETCH:
            drawn = torch.randn(num_values, SKETCH, generator=torch.Generator().manual_seed(0))
            self._matrix = (drawn / SKETCH**0.5).to(like.device)

    def __call__(self, samples: Tensor) -> Vectors:
        """Return the projections, (B, D), of samples, (B, ...)."""
        flat = samples.flatten(1).float()
        return (flat if self._matrix is None else flat @ self._matrix).cpu().numpy()


def gains(pipe: Any, generate: Callable[[], Any], recorder: Recorder) -> Array:
    """Return the norm at the end of sampling of a unit of error in a step's predicted noise, (T, B).

    `generate` runs the recorded generation again. Between the steps that are probed the logarithm is linear. The last
    steps are all probed, since the last step of some solvers changes nothing.
    """
    count = len(recorder.stale_errors)
    spaced = np.linspace(1, count - 1, min(NUM_PROBES, count - 1)).round().astype(int)
    probes = np.union1d(spaced, np.arange(max(1, count - _LAST), count))
    found = np.log(np.maximum([_gain(pipe, generate, recorder, int(probe)) for probe in probes], _LEAST))
    return np.exp([np.interp(np.arange(count), probes, of_sample) for of_sample in found.T]).T


def _gain(pipe: Any, generate: Callable[[], Any], recorder: Recorder, probe: int) -> Array:
    """Replay the recorded outputs before a step and the stale output at the step; later steps run in full."""
    unet = unet_of(pipe)[1]
    kept = chain(*recorder.outputs[:probe], recorder.stale[probe])
    last: deque[Tensor] = deque(maxlen=1)

    def replay(*args: Any, **kwargs: Any) -> Any:
        output = next(kept, None)
        return type(unet).forward(unet, *args, **kwargs) if output is None else output

    answered(pipe, generate, replay, lambda _, latents: last.append(latents))
    moved = (last[0] - recorder.last).flatten(1).double().norm(dim=1)
    found: Array = (moved / recorder.stale_errors[probe].clamp(min=_LEAST)).cpu().numpy()
    return found

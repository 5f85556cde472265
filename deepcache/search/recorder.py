"""One uncached batch of samples is recorded: outputs, features, what stale features do, and how errors carry on."""

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

SKETCH = 512  # numbers that are kept of one sample's response
NUDGE = 0.25  # share of the way to an older feature: small enough for first order, large enough against rounding
NUM_PROBES = 9  # steps at which gains are measured
_LAST = 3  # the last steps, which are all probed
_LEAST = 1e-8  # least gain, since logarithms are interpolated


class Recorder:
    """Answers the U-Net's calls in full and records them; a step may have several calls, for guidance.

    Attributes:
        outputs: the U-Net's output for each step and call.
        stale: the output with the feature of the step before, for each step and call.
        stale_errors: (B,) for each step, the norm of their difference after guidance.
        last: the latents after the last step.
    """

    def __init__(self, unet: Any, branch: int) -> None:
        self._cut, self._branch = cut(unet, branch), branch
        self._features: list[list[Feature]] = []
        self._own: list[Feature] = []  # this step's features, one a call
        self._responses: list[list[Tensor]] = []  # this step's responses, by call and by earlier step
        self._vectors: list[NDArray[np.float32]] = []
        self._sketch: Sketch | None = None
        self._timesteps: list[float] = []
        self.outputs: list[list[Any]] = [[]]
        self.stale: list[list[Any]] = [[]]
        self.stale_errors: list[Tensor] = []
        self.last: Tensor = torch.empty(0)

    @classmethod
    def of(cls, pipe: Any, generate: Callable[[], Any], branch: int) -> Recorder:
        """Record the generation that `generate` runs.

        Raises:
            DeepCacheError: the generation has fewer than two steps.
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
        """End a step: the solver was given `model_output`, from which the weights of guidance follow."""
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
    """Answers a U-Net's calls, and is told what the solver makes of them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def solved(self, model_output: Tensor, latents: Tensor) -> None: ...


def answered(by: Answering, pipe: Any, generate: Callable[[], Any]) -> None:
    """Run `generate` while `by` answers the calls of the pipeline's U-Net."""
    outer, unet = unet_of(pipe)
    installed = install(unet, outer, by)
    try:
        with torch.no_grad(), listening(pipe.scheduler, by.solved):
            generate()
    finally:
        uninstall(installed, by)


@contextmanager
def listening(scheduler: Any, listener: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Within the block, call `listener` at each step with what the solver is given and the latents that it makes."""
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
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randn(num_values, SKETCH, generator=generator) / SKETCH**0.5
            self._matrix = drawn.to(like.device)

    def __call__(self, samples: Tensor) -> NDArray[np.float32]:
        """Return the projections, (B, D), of samples, (B, ...)."""
        flat = samples.flatten(1).float()
        return (flat if self._matrix is None else flat @ self._matrix).cpu().numpy()


def _combination(parts: Sequence[Tensor], whole: Tensor) -> list[float]:
    """Return the c with whole = sum c_i part_i, by least squares: 1, or the weights of guidance."""
    columns = torch.stack([part.flatten() for part in parts], dim=1).double()
    solution = torch.linalg.lstsq(columns, whole.flatten().double()[:, None]).solution
    return solution[:, 0].tolist()  # type: ignore[no-any-return]


def _noise(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output.sample  # type: ignore[no-any-return]


def _timestep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[1] if len(args) > 1 else kwargs["timestep"]


def gains(
    pipe: Any, generate: Callable[[], Any], recorder: Recorder, num_probes: int = NUM_PROBES
) -> NDArray[np.float64]:
    """Return the norm at the end of sampling of a unit of error in a step's predicted noise, (T, B).

    To probe a step, the recorded outputs are replayed before it, its output is the stale output, and all later steps
    run in full. Between probes the logarithm is linear. The last steps are all probed, since the last step of some
    solvers changes nothing.

    Args:
        pipe: the recorded pipeline.
        generate: runs the recorded generation again, with the same seeds and arguments.
        recorder: the record of the uncached generation.
        num_probes: how many evenly spaced steps are probed, beside the last steps.
    """
    count = recorder.num_steps
    spaced = np.linspace(1, count - 1, min(num_probes, count - 1)).round().astype(int)
    probes = np.union1d(spaced, np.arange(max(1, count - _LAST), count))
    found = np.log(np.maximum([_gain(pipe, generate, recorder, int(probe)) for probe in probes], _LEAST))
    return np.exp([np.interp(np.arange(count), probes, of_sample) for of_sample in found.T]).T


def _gain(pipe: Any, generate: Callable[[], Any], recorder: Recorder, probe: int) -> NDArray[np.float64]:
    replay = _Replay(unet_of(pipe)[1], recorder, probe)
    answered(replay, pipe, generate)
    assert replay.last is not None
    moved = (replay.last - recorder.last).flatten(1).double().norm(dim=1)
    found: NDArray[np.float64] = (moved / recorder.stale_errors[probe].clamp(min=_LEAST)).cpu().numpy()
    return found


class _Replay:
    """Answers calls with recorded outputs before a step, with the stale output at the step, and in full after it."""

    def __init__(self, unet: Any, recorder: Recorder, probe: int) -> None:
        self._unet, self._recorder, self._probe = unet, recorder, probe
        self._step = self._call = 0
        self.last: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        step, call = self._step, self._call
        self._call += 1
        if step > self._probe:
            return type(self._unet).forward(self._unet, *args, **kwargs)
        kept = self._recorder.stale if step == self._probe else self._recorder.outputs
        return kept[step][call]

    def solved(self, _: Tensor, latents: Tensor) -> None:
        self._step, self._call, self.last = self._step + 1, 0, latents

"""How far an error in the predicted noise of a step carries to the last latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deepcache.search.recorder import Recorder, answered
from deepcache.unets.pipelines import unet_of

NUM_PROBES = 9
_LAST = 3
_LEAST = 1e-8  # of a gain: the logarithm is interpolated


def gains(
    pipe: Any, generate: Callable[[], Any], recorder: Recorder, num_probes: int = NUM_PROBES
) -> NDArray[np.float64]:
    """For each step and sample the norm that a unit of error at it has at the end, (T, B).

    Some steps are probed: what was recorded is replayed up to the step, whose output is that with the feature of the
    step before; all later steps run in full. Between probes the logarithm is linear. The last steps are all probed:
    some solvers' last step changes nothing.

    Args:
        pipe: as the recorder saw it.
        generate: runs it once more, with the same seeds and arguments.
        recorder: of its uncached run.
        num_probes: how many steps, evenly spaced, and the last ones.
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
    """Answers calls with recorded outputs up to a step, with its stale output at it, and in full after it."""

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

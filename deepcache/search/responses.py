"""Responses: what shallow steps would get wrong, measured along uncached samples.

A shallow step at step j takes S_j(f) for the U-Net's output, with f in place of its own feature f_j. For every earlier
step i the calibration measures the response

    u_i = (S_j(f_j + s (f_i - f_j)) - S_j(f_j)) / s

after guidance, as the solver gets it. To first order, a prediction sum_i l_i f_i with weights l of sum 1 makes the
error sum_i l_i u_i in the predicted noise. So the responses tell the error of every order and choice of full steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Vectors = NDArray[np.float32]


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
        places = np.arange(self.num_steps, dtype=np.float64) if self._repeats(nodes) else self.timesteps
        return lagrange(places[list(nodes)], places[step])

    def _repeats(self, nodes: Sequence[int]) -> bool:
        """Return whether timesteps of nodes repeat; predictions then go by the steps' numbers."""
        return self._has_repeats and len(set(self.timesteps[list(nodes)])) < len(nodes)

    @cached_property
    def _has_repeats(self) -> bool:
        return len(set(self.timesteps)) < self.num_steps


def lagrange(nodes: Array, at: float) -> Array:
    """Return the weights, of sum 1, with which a polynomial's values at the nodes give its value at a place."""
    apart = nodes[:, None] - nodes[None]
    ratios = (at - nodes[None]) / np.where(apart == 0, 1.0, apart)
    weights: Array = np.where(np.eye(len(nodes), dtype=bool), 1.0, ratios).prod(axis=1)
    return weights

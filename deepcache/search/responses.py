"""What a shallow step would get wrong, measured along uncached trajectories.

At step j a shallow step takes S_j(f) for the U-Net's output, with f in place of its own feature f_j. For every earlier
step i the calibration asks for the response

    u_i = (S_j(f_j + s (f_i - f_j)) - S_j(f_j)) / s

after guidance, as the solver gets it. To first order a prediction sum_i l_i f_i, whose weights l have the sum 1, makes
the error sum_i l_i u_i in the predicted noise: that of every order, with every choice of full steps.
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
    """Of a pipeline at a branch.

    Attributes:
        vectors: of step j those to the steps before it, (j, B, D); a sketch of D numbers a sample.
        timesteps: (T,), the predictions' coordinate.
        branch: of the features.
    """

    vectors: tuple[Vectors, ...]
    timesteps: Array
    branch: int

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def error(self, nodes: Sequence[int], step: int) -> Vectors:
        """Of the predicted noise at a step, from the full steps `nodes`, newest first: (B, D)."""
        weights = self._weights(nodes, step).astype(np.float32)
        found: Vectors = np.tensordot(weights, self.vectors[step][list(nodes)], 1)
        return found

    def squared_error(self, nodes: Sequence[int], step: int, of: Array) -> float:
        """The same squared, the mean over samples, from one of `products`."""
        weights = self._weights(nodes, step)
        return max(0.0, float(weights @ of[step][np.ix_(nodes, nodes)] @ weights))

    def products(self, gains: Array) -> Array:
        """(T, T, T): at step j the products of the responses to i and i', a sample's times its squared gain (T, B)."""
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
        """Whether timesteps of nodes repeat, where predictions go by the steps' numbers."""
        return self._has_repeats and len(set(self.timesteps[list(nodes)])) < len(nodes)

    @cached_property
    def _has_repeats(self) -> bool:
        return len(set(self.timesteps)) < self.num_steps


def lagrange(nodes: Array, at: float) -> Array:
    """The weights of the values at the nodes in their polynomial's value at a place; their sum is 1."""
    apart = nodes[:, None] - nodes[None]
    ratios = (at - nodes[None]) / np.where(apart == 0, 1.0, apart)
    weights: Array = np.where(np.eye(len(nodes), dtype=bool), 1.0, ratios).prod(axis=1)
    return weights

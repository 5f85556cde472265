"""What a shallow step would get wrong, measured along uncached trajectories.

At step j a shallow step takes S_j(f) for the U-Net's output, with f in place of its own feature f_j. For every earlier
step i the calibration asks for the response

    u_i = (S_j(f_j + s (f_i - f_j)) - S_j(f_j)) / s

after guidance, as the solver gets it. To first order a prediction sum_i l_i f_i, whose weights l have the sum 1, makes
the error sum_i l_i u_i in the predicted noise; so the products <u_i, u_i'>, a small matrix a step, tell the error of
every order with every choice of full steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Responses:
    """Of a pipeline at a branch.

    Attributes:
        products: (T, T, T), of step j those of the responses to steps i and i' before it, the mean over samples.
        timesteps: (T,), the predictions' coordinate.
        branch: of the features.
    """

    products: NDArray[np.float64]
    timesteps: NDArray[np.float64]
    branch: int

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def error(self, nodes: Sequence[int], step: int) -> float:
        """The squared error of the predicted noise at a step, from the full steps `nodes`, newest first."""
        weights = lagrange(self._coordinates(nodes), self._coordinates([step], like=nodes)[0])
        part = self.products[step][np.ix_(nodes, nodes)]
        return max(0.0, float(weights @ part @ weights))

    def _coordinates(self, steps: Sequence[int], like: Sequence[int] = ()) -> NDArray[np.float64]:
        """Timesteps, or the steps' numbers where those of the nodes repeat, as the predictions do."""
        nodes = list(like or steps)
        repeats = len(set(self.timesteps[nodes])) < len(nodes)
        return np.asarray(steps, np.float64) if repeats else self.timesteps[list(steps)]


def lagrange(nodes: NDArray[np.float64], at: float) -> NDArray[np.float64]:
    """The weights of the values at the nodes in their polynomial's value at a place; their sum is 1."""
    apart = nodes[:, None] - nodes[None]
    ratios = (at - nodes[None]) / np.where(apart == 0, 1.0, apart)
    weights: NDArray[np.float64] = np.where(np.eye(len(nodes), dtype=bool), 1.0, ratios).prod(axis=1)
    return weights

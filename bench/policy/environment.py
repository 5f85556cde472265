"""The task: a point goes to a goal behind an obstacle. Its expert goes around on either side, left or right by chance.

So there are two right ways, whose mean runs into the obstacle: what a policy by regression fails at, and what diffusion
policies are for.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
RADIUS, REACHED, SPEED = 0.2, 0.05, 0.05  # of the obstacle; the distance that counts as reached; of a step
MOST_STEPS = 60
FIRST_SEED = 100_000  # of the episodes on which success is measured
OBSERVATION = 6  # the point, the goal and the obstacle, two coordinates each


class Around(gymnasium.Env[Array, Array]):
    """Go from the left to a goal on the right without touching the obstacle between them.

    An observation has the point, the goal and the obstacle, in -1..1. An action is a velocity, in -1..1 of `SPEED`. The
    reward is 1 where the goal is reached; an episode ends there, at the obstacle, or after `MOST_STEPS`.
    """

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-2, 2, (OBSERVATION,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self._place, self._goal, self._obstacle = (np.zeros(2) for _ in range(3))
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        draw = self.np_random.uniform
        self._place = np.array([-0.9, draw(-0.4, 0.4)])
        self._goal = np.array([0.9, draw(-0.4, 0.4)])
        middle = (self._place + self._goal) / 2
        self._obstacle = middle + np.array([draw(-0.2, 0.2), draw(-0.05, 0.05)])
        self._steps = 0
        return self._observed(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self._place = self._place + SPEED * np.clip(action, -1, 1)
        self._steps += 1
        is_reached = bool(np.linalg.norm(self._place - self._goal) < REACHED)
        is_hit = bool(np.linalg.norm(self._place - self._obstacle) < RADIUS)
        is_success = is_reached and not is_hit
        return self._observed(), float(is_success), is_reached or is_hit, self._steps >= MOST_STEPS, {}

    def _observed(self) -> Array:
        return np.concatenate([self._place, self._goal, self._obstacle]).astype(np.float32)


def expert(observation: Array, side: int) -> Array:
    """Return the expert's action: straight ahead where the way is free, else around the obstacle on side 1 or -1."""
    place, goal, obstacle = observation.astype(np.float64).reshape(3, 2)
    ahead, aside = goal - place, obstacle - place
    far = float(np.linalg.norm(ahead))
    along = float(aside @ ahead) / max(far, 1e-9)
    off = float(np.linalg.norm(aside - along * ahead / max(far, 1e-9)))
    wide = RADIUS + 2 * SPEED
    if along > 0 and off < wide:  # the obstacle is in the way
        distance = max(float(np.linalg.norm(aside)), 1e-9)
        angle = side * np.arcsin(min(1.0, wide / distance))
        turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ (aside / distance)
    else:
        turned = ahead / max(far, 1e-9)
    return (turned * min(1.0, far / SPEED)).astype(np.float32)


def demonstrations(num_episodes: int) -> tuple[Array, Array]:
    """Return the expert's observations (T, 6) and the actions that follow each, as `chunks` needs them."""
    observations, actions = [], []
    for seed in range(num_episodes):
        env = Around()
        seen, _ = env.reset(seed=seed)
        side = 1 if env.np_random.random() < 0.5 else -1
        own, done = [], False
        while not done:
            action = expert(seen, side)
            own.append((seen, action))
            seen, _, ended, cut, _ = env.step(action)
            done = ended or cut
        observations.append(np.stack([each for each, _ in own]))
        actions.append(chunks(np.stack([each for _, each in own])))
    return np.concatenate(observations), np.concatenate(actions)


HORIZON = 16  # actions that are predicted together


def chunks(actions: Array) -> Array:
    """Return for each step the next `HORIZON` actions, (T, 16, 2); the last one is repeated."""
    padded = np.concatenate([actions, np.repeat(actions[-1:], HORIZON - 1, axis=0)])
    return np.stack([padded[first : first + HORIZON] for first in range(len(actions))])

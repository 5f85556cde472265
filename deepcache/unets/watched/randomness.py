"""The random numbers that a call draws, so that the call can be repeated with the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

States = dict[torch.device, Tensor]  # of the generators of the CPU and of the devices of a call's arguments


class Randomness:
    """The states of the random generators before and after a call; `finish` is called between."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        self._devices = {torch.device("cpu")} | {each.device for each in tensors if each.device.type == "cuda"}
        self._before = self._states()
        self._is_used = True

    def finish(self, *, is_used: bool) -> None:
        """Say that the call is over, and whether it drew random numbers.

        A call that drew none is repeated without a change of the generators, which other threads may use meanwhile.
        """
        after = self._states()
        self._is_used = is_used and not all(torch.equal(state, after[device]) for device, state in self._before.items())

    def rewind(self) -> None:
        """Set the generators as they were before the call."""
        self._set(self._before)

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Within the block, random numbers are those of the call; afterwards the generators are as they were."""
        if not self._is_used:
            yield
            return
        now = self._states()
        self._set(self._before)
        try:
            yield
        finally:
            self._set(now)

    def _states(self) -> States:
        return {
            device: torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
            for device in self._devices
        }

    def _set(self, states: States) -> None:
        for device, state in states.items():
            if device.type == "cpu":
                torch.set_rng_state(state)
            else:
                torch.cuda.set_rng_state(state, device)

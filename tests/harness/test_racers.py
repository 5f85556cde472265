"""The entries of the race: each is held against an eager entry of the same plan and order (closed lists)."""

from __future__ import annotations

import pytest
import torch

from bench.harness import racers


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_entry_is_held_against_an_eager_entry_of_the_same_plan_and_order(device: str) -> None:
    entries = {entry.name: entry for entry in racers.entries(torch.device(device))}
    for entry in entries.values():
        exact = entries[entry.exact]
        assert exact.is_eager
        assert not exact.how
        assert (exact.is_idle, exact.order) == (entry.is_idle, entry.order)
        assert (entries[entry.base].how or {}) == (entry.how or {})
        assert entries[entry.base].base == entry.base


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shallow_and_idle_plans_run_in_every_way(device: str) -> None:
    entries = racers.entries(torch.device(device))
    names = [entry.name for entry in entries]
    assert len(set(names)) == len(names)
    suffixes = {name.removeprefix(racers.UNCACHED) for name in names if name.startswith(racers.UNCACHED)}
    for suffix in suffixes:
        assert {racers.OURS + suffix, racers.IDLE + suffix} <= set(names)

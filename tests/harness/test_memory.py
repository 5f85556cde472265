"""Peak memory of tensors (closed form: bytes of what lives at once)."""

from __future__ import annotations

import torch

from bench.harness.memory import PeakMemory


def test_the_peak_is_what_lives_at_once():
    with PeakMemory() as memory:
        first = torch.zeros(1_000)
        second = first + 1
        del first
        third = second * 2
        del second
        third.view(10, 100).add_(1)
    assert (memory.peak, memory.live) == (8_000, 4_000)
    assert third[0] == 3


def test_views_and_what_was_there_before_do_not_count():
    before = torch.zeros(1_000)
    with PeakMemory() as memory:
        before.add_(1)
        before.view(10, 100)[2:].t()
    assert memory.peak == 0


def test_memory_that_is_used_again_counts_again():
    with PeakMemory() as memory:
        for _ in range(3):
            held = torch.ones(500)
            del held
    assert (memory.peak, memory.live) == (2_000, 0)

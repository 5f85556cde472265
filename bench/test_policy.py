"""A robot's diffusion policy (beyond the paper): how often it succeeds where its U-Net is cached.

The U-Net is of a class of its own, which deepcache watches. Every method runs the same 200 episodes from the same
noise. Beside the successes stands how far the first actions are from those of the uncached policy, which tells the
methods apart where all of them succeed, as the expert does. `pytest bench` leaves this file out, since it takes some
ten minutes: name it, or pass `--all`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import deepcache
from bench.harness.columns import SPEEDUP
from bench.harness.requirements import Needs
from bench.policy.environment import FIRST_SEED, HORIZON, OBSERVATION
from bench.policy.policy import NUM_ACTIONS, Policy, begun, drawn, load, seeded, successes
from deepcache.costs.macs import EVERYTHING, cost
from deepcache.metrics.statistics import bootstrap
from deepcache.plan import DEFAULT_ORDER, IDLE, Interval
from deepcache.results.layout import Column, Layout

NEEDS = Needs(())
TABLE = Layout(
    "policy",
    title="A robot's policy on a U-Net of a class of its own: success of 200 episodes",
    columns=(
        Column("macs_share", "MACs, share of the uncached (%)", 1, scale=0.01),
        SPEEDUP,
        Column("success", "success (%)", 1, scale=0.01),
        Column("success_low", "from", 1, scale=0.01),
        Column("success_high", "to", 1, scale=0.01),
        Column("action_error", "distance of the first actions (% of full speed)", 2, scale=0.01),
    ),
)
NUM_EPISODES = 200  # the policy was trained on others
METHODS: dict[str, Interval | int | None] = {  # a plan, or the number of steps without one
    "uncached": None,
    **{f"N={n}, reuse": Interval(n, 0, 0) for n in (2, 3, 5, 10)},
    **{f"N={n}, order 1": Interval(n, 0, 1) for n in (2, 3, 5, 10)},
    **{f"N={n}, idle": Interval(n, IDLE, DEFAULT_ORDER) for n in (3, 5, 10)},
    "33 steps": 33,
    "20 steps": 20,
    "10 steps": 10,
}
# A trained policy follows its expert nearly always; caching every second step must not change that.
SUCCESS, LOST_AT_INTERVAL_2 = 0.9, 0.03
pytestmark = pytest.mark.named_alone
TIMED = 32  # robots that act side by side where time is measured


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load()


@pytest.fixture(scope="module")
def seeds(pytestconfig: pytest.Config) -> range:
    """Return the episodes' seeds; `--num-samples` asks for fewer."""
    return range(FIRST_SEED, FIRST_SEED + (pytestconfig.getoption("num_samples") or NUM_EPISODES))


@pytest.fixture(scope="module")
def uncached(policy: Policy, seeds: range) -> tuple[list[bool], Tensor]:
    """Return the successes and the first actions."""
    return successes(policy, seeds), _first_actions(policy, seeds)


@pytest.mark.parametrize("method", METHODS)
def test_policy(
    record: Callable[..., None],
    policy: Policy,
    seeds: range,
    uncached: tuple[list[bool], Tensor],
    method: str,
    benchmark: Any,
) -> None:
    how = METHODS[method]
    run = replace(policy, num_steps=how) if isinstance(how, int) else policy
    plan = how if isinstance(how, Interval) else None
    block = nullcontext() if plan is None else deepcache.cached(run, plan)
    with block:
        found, actions = uncached if method == "uncached" else (successes(run, seeds), _first_actions(run, seeds))
    each = np.array(found, dtype=np.float64)
    low, high = bootstrap(np.mean, each)
    times = _interleaved(policy, run, plan, benchmark) if benchmark.enabled else {}
    record(
        table=TABLE,
        key={"method": method},
        label=method,
        settings={
            "model": "policy",
            "extractor": "none",
            "num_steps": run.num_steps,
            "num_samples": len(seeds),
            "first_seed": seeds.start,
            **({} if plan is None else {"interval": plan.interval, "branch": plan.branch, "order": plan.order}),
        },
        metrics={
            "macs_share": _share(policy, run, plan),
            "success": float(each.mean()),
            "success_low": low,
            "success_high": high,
            "action_error": float((actions - uncached[1]).square().mean().sqrt()),
            **times,
        },
    )
    if method == "uncached":
        assert each.mean() >= SUCCESS
    if method == "N=2, order 1" and len(seeds) == NUM_EPISODES:
        assert each.mean() >= np.mean(uncached[0]) - LOST_AT_INTERVAL_2


def _first_actions(policy: Policy, seeds: range) -> Tensor:
    """Return the first actions of each episode, which begins alike for all methods."""
    return policy.act(torch.from_numpy(begun(seeds)[1]), drawn(seeded(seeds)))


def _share(policy: Policy, run: Policy, plan: Interval | None) -> float:
    """Return the share of the uncached policy's MACs."""
    if plan is None:
        return run.num_steps / policy.num_steps
    one = cost(policy.unet, torch.zeros(1, HORIZON, NUM_ACTIONS), torch.tensor(0), torch.zeros(1, OBSERVATION))
    full = sum(plan.is_full(step, run.num_steps) for step in range(run.num_steps))
    rest = (run.num_steps - full) * one.shallow(plan.branch, EVERYTHING) / one.full(EVERYTHING)
    return (full + rest) / policy.num_steps


def _interleaved(policy: Policy, run: Policy, plan: Interval | None, benchmark: Any) -> dict[str, float]:
    """Return how many times faster a method acts than the uncached policy, in rounds that take turns."""
    observed, noise = torch.zeros(TIMED, OBSERVATION), torch.zeros(TIMED, HORIZON, NUM_ACTIONS)
    before: list[float] = []
    after: list[float] = []

    def act(one: Policy, seconds: list[float]) -> None:
        started = time.perf_counter()
        one.act(observed, noise)
        seconds.append(time.perf_counter() - started)

    def cached() -> None:
        with nullcontext() if plan is None else deepcache.cached(run, plan):
            run.act(observed, noise)  # its first call is watched
            act(run, after)

    benchmark.group = "policy"
    benchmark.pedantic(cached, setup=lambda: act(policy, before), rounds=3)
    return {"speedup": float(np.median([b / a for b, a in zip(before, after, strict=True)]))}

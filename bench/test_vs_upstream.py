"""Speed is compared at the same plan (beyond the paper): uncached, by `DeepCache` 0.1.1, and by this library.

`pytest bench` leaves this file out: name it, as `tox -e upstream` does, or pass `--all`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from tqdm import tqdm

from bench.harness import racers
from bench.harness.columns import FEATURE
from bench.harness.measure import NOT_MEASURED, conditions
from bench.harness.racers import figure
from bench.harness.requirements import Needs
from bench.harness.scales import scale_of
from bench.harness.workload import Run, Workload
from deepcache.costs.macs import EVERYTHING
from deepcache.plan import uniform
from deepcache.results.figures import picture
from deepcache.results.layout import Column, Layout

NEEDS = Needs(("raced",))
TABLE = Layout(
    "upstream",
    title="Speed at the same plan: uncached, by the older package, and by this library; idle steps at its MACs",
    look="Look at “times the older's speed”: 1 is level, above 1 this library is faster at the same plan.",
    columns=(
        Column("latency_s", "U-Net of a generation (s)", 3),
        Column("speedup", "speedup", 2),
        Column("macs_bound", "bound by MACs", 2),
        Column("bound_share", "of the bound (%)", 1, scale=0.01),
        Column("against_older", "times the older's speed", 2),
        Column("host_s", "host (ms a step)", 2, scale=1e-3),
        Column("peak_bytes", "peak memory (MiB)", 1, scale=2**20),
        FEATURE,
        Column("num_features", "kept tensors", 0),
        Column("error", "differs from eager (1e-6)", 2, scale=1e-6),
    ),
)
# At the same plan both packages run the same convolutions, so this one must never be slower than the older: 3 % is what
# medians of interleaved rounds move by from one run to the next.
ENOUGH_ROUNDS = 12
AGAINST_OLDER_PACKAGE = 0.97
# In float32 other kernels and layouts round elsewhere: within a thousandth of the largest output.
DIFFERS_FROM_EAGER_BY = 1e-3
# An idle step interpolates a tensor of the output's size, a thousandth of the U-Net's operations. The bound leaves 3 %
# for this, for the library's own Python, and for the noise of medians of interleaved rounds.
IDLE_OF_THE_BOUND = 0.97
# The older package keeps the output of every module that it wraps, 20 and more; this one keeps a feature.
OLDER_KEEPS_AT_LEAST = 5

pytestmark = pytest.mark.named_alone
INTERVAL, NUM_STEPS = 5, 20
WARM_UP, HOST_ROUNDS = 2, 5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    scale = scale_of(metafunc.config)
    cases = [(model, batch) for model in scale.raced for batch in scale.race_batches]
    metafunc.parametrize(("model", "batch"), cases, ids=[f"{model}-batch {batch}" for model, batch in cases])


def test_vs_upstream(
    benchmark: Any,
    record: Callable[..., None],
    workload: Callable[[str], Workload],
    pytestconfig: pytest.Config,
    model: str,
    batch: int,
) -> None:
    found = workload(model)
    unet = found.pipe.unet
    plan = uniform(NUM_STEPS, INTERVAL, found.protocol.branch, order=0)
    call = found.unet_call(batch)
    idle_plan = found.idle(Run(None, NUM_STEPS, plan)).cache_plan
    plans = {False: plan, True: idle_plan}
    bounds = {is_idle: found.cost.ratio(each) for is_idle, each in plans.items()}
    rounds = max(pytestconfig.getoption("rounds"), ENOUGH_ROUNDS) if benchmark.enabled else 0
    times: list[dict[str, float]] = []
    with ExitStack() as stack:
        all_racers = [
            stack.enter_context(racers.racer(entry, unet, plans[entry.is_idle], call).entered())
            for entry in racers.entries(unet.device)
            if benchmark.enabled or entry.is_eager
        ]
        with tqdm(
            total=WARM_UP + rounds, desc=f"{model}, batch {batch}", unit="round", disable=None, leave=False
        ) as bar:

            def one_round() -> None:
                times.append(racers.interleaved(all_racers))
                bar.update()

            for _ in range(WARM_UP):
                one_round()
            times.clear()
            benchmark.pedantic(one_round, rounds=max(1, rounds))
        if not benchmark.enabled:
            times.clear()
        kept = {one.entry.name: one.feature_bytes() for one in all_racers}
        exact = {one.entry.name: list(one.outputs()) for one in all_racers if one.entry.exact == one.entry.name}
        errors = {
            one.entry.name: one.error(exact[one.entry.exact]) for one in all_racers if one.entry.name not in exact
        }
        for one in all_racers:
            record(
                table=TABLE,
                key={"model": model, "batch": batch, "entry": one.entry.name},
                label=f"{model}, batch {batch}, {one.entry.name}",
                settings={
                    "model": model,
                    "extractor": "none",
                    **conditions(found),
                    "batch_size": batch,
                    "branch": one.plan.branch,
                    "order": one.entry.order,
                    **({} if one.entry.is_idle else {"interval": INTERVAL}),
                    "full_steps": " ".join(map(str, one.plan.full_steps)),
                    "num_steps": NUM_STEPS,
                    "macs_convention": str(EVERYTHING),
                    "timing": f"medians of {rounds} interleaved rounds of the U-Net's calls" if times else NOT_MEASURED,
                },
                metrics={
                    "macs_bound": _bound(one.entry, bounds),
                    "feature_bytes": kept[one.entry.name],
                    "num_features": one.num_features(),
                    **_memory(one),
                    **_speed(one.entry, times, bounds),
                    **({"error": errors[one.entry.name]} if one.entry.name in errors else {}),
                    **({} if not times else _host(one)),
                },
                pictures=_pictures(model, batch, times, all_racers, bounds) if one.entry.name == racers.OURS else [],
            )
    if found.dtype_name == "float32":
        assert max(errors.values()) <= DIFFERS_FROM_EAGER_BY
    assert kept[racers.OURS] * OLDER_KEEPS_AT_LEAST <= kept[racers.OLDER]
    if times and found.is_mini:
        ratio = statistics.median(each[racers.OLDER] / each[racers.OURS] for each in times)
        assert ratio >= AGAINST_OLDER_PACKAGE
        speedup = statistics.median(each[racers.UNCACHED] / each[racers.IDLE] for each in times)
        assert speedup >= IDLE_OF_THE_BOUND * bounds[True]


def _bound(entry: racers.Entry, bounds: dict[bool, float]) -> float:
    """Return the speedup if time went by MACs alone, from those of the plans without and with idle steps."""
    return 1.0 if entry.name.startswith(racers.UNCACHED) else bounds[entry.is_idle]


def _speed(entry: racers.Entry, times: list[dict[str, float]], bounds: dict[bool, float]) -> dict[str, float]:
    if not times:
        return {}
    speedup = statistics.median(each[entry.base] / each[entry.name] for each in times)
    found = {"latency_s": statistics.median(each[entry.name] for each in times), "speedup": speedup}
    if not entry.name.startswith(racers.UNCACHED):
        found["bound_share"] = speedup / _bound(entry, bounds)
    if not entry.name.startswith(racers.UNCACHED) and not entry.is_idle:  # which has another plan
        found["against_older"] = statistics.median(each[racers.OLDER] / each[entry.name] for each in times)
    return found


def _pictures(
    model: str, batch: int, times: list[dict[str, float]], all_racers: list[racers.Racer], bounds: dict[bool, float]
) -> list[dict[str, str]]:
    if not times:
        return []
    speedups = {one.entry.name: _speed(one.entry, times, bounds)["speedup"] for one in all_racers}
    of_macs = {one.entry.name: _bound(one.entry, bounds) for one in all_racers}
    text = (
        f"{model}, batch {batch}: how many times faster than uncached, by the older package and by this library, with "
        "shallow steps and with idle steps."
    )
    return [picture(f"upstream-{model}-{batch}", text, figure(speedups, of_macs))]


def _memory(one: racers.Racer) -> dict[str, int]:
    peak = one.peak_bytes()
    return {} if peak is None else {"peak_bytes": peak}


def _host(one: racers.Racer) -> dict[str, float]:
    seconds = racers.host_seconds(one, HOST_ROUNDS)
    return {} if seconds is None else {"host_s": seconds}

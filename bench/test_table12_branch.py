"""Table 12 and Figure 4 take every branch at N = 5: an inner branch is dearer, and its image is nearer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from bench.harness.columns import CLIP, DDPM, FID, MEDIAN, NEAREST, PSNR, SPEED, of_the_paper
from bench.harness.laws import (
    Judge,
    assert_clip_score_is_kept,
    macs_rule_time,
    medians_db,
    skip_unless_judged,
    speedup_in_pixels,
)
from bench.harness.measure import Measure
from bench.harness.requirements import Needs
from bench.harness.scales import scale_of
from bench.harness.workload import Run, Workload
from deepcache.models.architectures import architecture
from deepcache.plan import DEFAULT_ORDER, IDLE, Order
from deepcache.results.layout import Layout, Plot

NEEDS = Needs(("unconditional", "prompted"), real_images=True)
TABLE = Layout(
    "table12",
    title="Table 12 and Figure 4: every branch at N = 5",
    look="Read PSNR against MACs down the branches of a model: each further branch costs more.",
    columns=(*SPEED, FID, CLIP, PSNR, MEDIAN),
    published=of_the_paper(
        "DDPM, CIFAR-10, DDIM 100 steps, quadratic timesteps, N = 5",
        DDPM,
        [
            ({"model": model, "branch": branch}, {"table": "Table 12", "branch": branch})
            for model in ("mini-ddpm", "ddpm-cifar10")
            for branch in range(12)
        ],
    ),
    plot=Plot("speedup", "psnr_median_db", "speedup", NEAREST, by="model"),
    number=12,
)
INTERVAL = 5
# A shallow step at a branch further in runs one stage more. That stage is new beside old ones, so an inner branch may
# be a little farther off than the branch before: 2 dB at most. The innermost must be nearer than the outermost by
# 10 dB, a tenth of the squared error.
DIPS_BY_AT_MOST_DB = 2.0
INNERMOST_GAINS_DB = 10.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    scale = scale_of(metafunc.config)
    models = (scale.unconditional, scale.prompted)
    cases: list[tuple[str, int, Order]] = [(model, branch, 0) for model in models for branch in _branches(model)]
    cases += [(model, IDLE, DEFAULT_ORDER) for model in models]
    if "skip" in metafunc.fixturenames:
        metafunc.parametrize(("model", "skip", "order"), cases)
    else:
        metafunc.parametrize("model", models)


def test_table12(
    measure: Measure,
    workload: Callable[..., Workload],
    pytestconfig: pytest.Config,
    model: str,
    skip: int,
    order: Order,
    judge: Judge,
) -> None:
    found = workload(model)
    in_pixels = model == scale_of(pytestconfig).unconditional
    uncached = _uncached(found)
    run = found.every(INTERVAL, skip, order, num_steps=uncached.num_steps)
    row = measure(
        TABLE,
        {"model": model, "branch": skip} | ({"order": order} if order else {}),
        found,
        run,
        uncached,
        found.seeds(),
        label=f"{model}, branch {skip}" + (f", order {order}" if order else ""),
        timed=in_pixels,  # the prompted model's branches are timed in the layer-wise ablation
        with_quality=in_pixels,
        settings={"interval": INTERVAL},
    )
    if not judge(found):
        return
    if row.timing is not None and macs_rule_time(found):
        speedup, least = row.timing.speedup, speedup_in_pixels(found.cost.ratio(run.cache_plan))
        assert speedup >= least
    if "clip_score" in row.metrics:
        assert_clip_score_is_kept(row.metrics["clip_score"], row.uncached.clip_scores)


@pytest.mark.shows_images
def test_table12_an_inner_branch_is_dearer_and_nearer(workload: Callable[..., Workload], model: str) -> None:
    found = workload(model)
    skip_unless_judged(found)
    uncached = _uncached(found)
    runs = [found.every(INTERVAL, branch, num_steps=uncached.num_steps) for branch in _branches(model)]
    macs = [found.cost.mean(run.cache_plan) for run in runs]
    assert all(outer < inner for outer, inner in pairwise(macs))
    psnr_db = medians_db(found, uncached, runs)
    assert all(inner >= outer - DIPS_BY_AT_MOST_DB for outer, inner in pairwise(psnr_db))
    assert psnr_db[-1] - psnr_db[0] >= INNERMOST_GAINS_DB


def _branches(model: str) -> range:
    """Return the branches from the one at which a step between full steps is idle to the innermost one."""
    return range(IDLE, architecture(model).num_branches)


def _uncached(found: Workload) -> Run:
    """Return the uncached run; mini-ddpm takes a quarter of its steps, since its twelve branches take long."""
    num_steps = found.protocol.num_steps // 4 if found.model == "mini-ddpm" else found.protocol.num_steps
    return found.uncached(num_steps=max(2, num_steps))

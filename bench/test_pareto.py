"""Cost against fidelity (beyond the paper): fewer steps, reuse, prediction, and the plans that `deepcache.tune` finds.

Left out of `pytest bench`, which has its twenty minutes: name the file, as `tox -e pareto` does, or pass `--all`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bench.harness import thresholds
from bench.harness.laws import is_judged
from bench.harness.measure import describe
from bench.harness.workload import Workload
from bench.pareto import aims
from bench.pareto import points as pareto

pytestmark = [pytest.mark.shows_images, pytest.mark.xdist_group("pareto")]  # which share panels
PARTS = ("class_conditional", "unconditional", "prompted")


@pytest.mark.parametrize("num_steps", pareto.STEPS, ids="{} steps".format)
@pytest.mark.parametrize("solver", pareto.SOLVERS)
@pytest.mark.parametrize("part", PARTS)
def test_pareto(
    record: Callable[..., None],
    workload: Callable[[str], Workload],
    part: str,
    solver: str,
    num_steps: int,
) -> None:
    model = workload(part)
    panel = pareto.panel(model, solver, pareto.steps_of(model, num_steps))
    for point in panel.points:
        record(
            experiment="pareto",
            row=f"{model.model}, {panel.name}, {point.name}",
            settings={
                **describe(model, point.run, panel.uncached, panel.seeds),
                "curve": point.curve,
                "panel": panel.name,
                **{f"choosing_{metric}": round(value, 4) for metric, value in point.choosing.items()},
            },
            metrics=point.metrics,
            per_seed=point.per_seed,
        )
    if num_steps == 50 and is_judged(model):
        gain = aims.gain(panel.points, 2, np.median)
        assert gain is not None
        assert gain.value >= thresholds.PARETO_GAIN_AT_INTERVAL_2_DB

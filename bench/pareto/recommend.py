"""Write the plans that are recommended for the embedded models, from the Pareto bench's results.

python -m tox -e pareto && python -m bench.pareto.recommend results.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.pareto.aims import chosen, reuse
from bench.pareto.equal_cost import NEAREST, Recorded, panels
from deepcache.models.embedded import PLANS, plan_path
from deepcache.plan import CachePlan

INTERVAL = 3  # a recommended plan costs no more than reuse at this interval
OF_ALL_STEPS = ("order 1", "order 2", "optimal", "tuned")


def main(results: Path) -> None:
    PLANS.mkdir(exist_ok=True)
    for (model, panel), points in panels(results).items():
        base = reuse(points, INTERVAL)
        best = None if base is None else chosen(points, OF_ALL_STEPS, base.share)
        if isinstance(best, Recorded):
            scheduler, steps = panel.split()
            _plan(best).save(plan_path(model, scheduler, int(steps)))
            print(f"{model}, {panel}: {best.name}, {best.metrics[NEAREST]:.1f} dB")


def _plan(point: Recorded) -> CachePlan:
    settings = {name: str(value) for name, value in point.record.settings.items()}
    full_steps = tuple(map(int, settings["full_steps"].split()))
    num_steps = int(point.metrics["num_full"] + point.metrics["num_shallow"])
    return CachePlan(num_steps, full_steps, int(settings["branch"]), int(settings["order"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

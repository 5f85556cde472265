"""Write the plans that are recommended for the embedded models, from the Pareto bench's results.

python -m tox -e pareto && python -m bench.pareto.recommend results.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.pareto.aims import PREDICTED, REUSE, chosen, reuse
from bench.pareto.equal_cost import NEAREST, PANEL, Recorded, panels
from deepcache.cache.prediction import REACHES
from deepcache.models.embedded import PLANS, plan_path
from deepcache.models.registry import MODELS
from deepcache.plan import AUTO, CachePlan

INTERVAL = 3  # a recommended plan costs no more than reuse at this interval
WIDEST = max(limit for _, limit in REACHES)  # the reach beyond which a polynomial tips seeds that few seeds do not show


def is_safe(point: Recorded) -> bool:
    """Return whether a plan reuses, has the default order, or a mean reach up to which the default extrapolates."""
    if "plan" not in point.record.settings:
        return False
    plan = CachePlan.from_json(str(point.record.settings["plan"]))
    protocol = MODELS[str(point.record.key["model"])].protocol
    guidance = point.record.key.get("guidance_scale", protocol.guidance_scale) or 1.0
    return plan.order in (0, AUTO) or float(guidance) / plan.num_full <= WIDEST


def main(results: Path) -> None:
    PLANS.mkdir(exist_ok=True)
    for (model, panel), points in panels(results).items():
        base = reuse(points, INTERVAL)
        own = [each for each in points if each.record.settings["num_steps"] == each.record.key["uncached_steps"]]
        safe = [each for each in own if is_safe(each)]
        best = None if base is None else chosen(safe, (*PREDICTED, REUSE), base.share)
        if isinstance(best, Recorded):
            solver, steps, guidance = (best.record.key.get(name) for name in PANEL[1:])
            path = plan_path(model, str(solver), int(str(steps)), None if guidance is None else float(str(guidance)))
            CachePlan.from_json(str(best.record.settings["plan"])).save(path)
            print(f"{model}, {panel}: {best.name}, {best.metrics[NEAREST]:.1f} dB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

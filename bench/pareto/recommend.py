"""Write the plans that are recommended for the embedded models, from the Pareto bench's results.

python -m tox -e pareto && python -m bench.pareto.recommend results.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.pareto.aims import PREDICTED, chosen, reuse
from bench.pareto.equal_cost import NEAREST, PANEL, Recorded, panels
from deepcache.models.embedded import PLANS, plan_path
from deepcache.plan import CachePlan

INTERVAL = 3  # a recommended plan costs no more than reuse at this interval


def main(results: Path) -> None:
    PLANS.mkdir(exist_ok=True)
    for (model, panel), points in panels(results).items():
        base = reuse(points, INTERVAL)
        own = [each for each in points if each.record.settings["num_steps"] == each.record.key["uncached_steps"]]
        best = None if base is None else chosen(own, PREDICTED, base.share)
        if isinstance(best, Recorded):
            solver, steps, guidance = (best.record.key.get(name) for name in PANEL[1:])
            path = plan_path(model, str(solver), int(str(steps)), None if guidance is None else float(str(guidance)))
            CachePlan.from_json(str(best.record.settings["plan"])).save(path)
            print(f"{model}, {panel}: {best.name}, {best.metrics[NEAREST]:.1f} dB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

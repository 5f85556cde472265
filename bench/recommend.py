"""From the Pareto bench's results to the plans that travel with the embedded models.

python -m tox -e pareto && python bench/recommend.py results.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from equal_cost import NEAREST, chosen, panels, value

from deepcache.models.recommended import PLANS, place
from deepcache.plan import CachePlan
from deepcache.plan_text import save_plan

PREDICTED = ("order 1", "order 2", "optimal", "tuned")  # of as many steps as are asked for


def main(results: Path) -> None:
    PLANS.mkdir(exist_ok=True)
    for (model, panel), records in panels(results).items():
        reuse = next((record for record in records if record.row.endswith(", order 0, N=3")), None)
        found = None if reuse is None else chosen(records, PREDICTED, value(reuse, "share"))
        if found is None:
            continue
        full_steps = tuple(map(int, str(found.settings["full_steps"]).split()))
        num_steps = int(value(found, "num_full") + value(found, "num_shallow"))
        plan = CachePlan(num_steps, full_steps, int(value(found, "branch")), int(value(found, "order")))
        scheduler, steps = panel.split()
        save_plan(plan, place(model, scheduler, int(steps)))
        print(f"{model}, {panel}: {found.row}, {value(found, NEAREST):.1f} dB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

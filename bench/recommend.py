"""From the Pareto bench's results to the plans that travel with the embedded models.

python -m tox -e pareto && python bench/recommend.py results.json
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from deepcache.models.recommended import PLANS, place
from deepcache.plan import CachePlan
from deepcache.plan_text import save_plan
from deepcache.results.record import Record, read

SHARE_OF = "order 0, N=3"
PREDICTED = ("order 1", "order 2", "optimal", "tuned")
CHOOSING = "choosing_psnr_db"  # of seeds that no figure is of


def chosen(records: list[Record]) -> Record | None:
    """Of a panel: the prediction that is nearest on the choosing seeds and costs no more than reuse at N = 3."""
    reuse = next((record for record in records if record.row.endswith(f", {SHARE_OF}")), None)
    if reuse is None:
        return None
    most = float(str(reuse.metrics["share"])) * (1 + 1e-9)
    within = [r for r in records if r.settings["curve"] in PREDICTED and float(str(r.metrics["share"])) <= most]
    return max(within, key=lambda record: float(str(record.settings[CHOOSING])), default=None)


def main(results: Path) -> None:
    panels = defaultdict(list)
    for record in read(results):
        if record.experiment == "pareto":
            panels[record.settings["model"], record.settings["panel"]].append(record)
    PLANS.mkdir(exist_ok=True)
    for (model, panel), records in panels.items():
        found = chosen(records)
        if found is None:
            continue
        full_steps = tuple(map(int, str(found.settings["full_steps"]).split()))
        num_steps = int(found.metrics["num_full"]) + int(found.metrics["num_shallow"])  # type: ignore[arg-type]
        plan = CachePlan(num_steps, full_steps, int(found.settings["branch"]), int(found.settings["order"]))  # type: ignore[arg-type]
        scheduler, steps = str(panel).split()
        save_plan(plan, place(str(model), scheduler, int(steps)))
        print(f"{model}, {panel}: {found.row}, {found.metrics['psnr_median_db']:.1f} dB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

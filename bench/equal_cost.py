"""From the Pareto bench's results to tables of README and docs/plans.md: what there is at reuse's cost, and at any.

python -m tox -e pareto && python bench/equal_cost.py results.json
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from pareto import PREDICTED

from deepcache.results.record import Record, read

SHOWN = {"mini-ldm": "ddim 50", "mini-ddpm": "ddim 50", "mini-sd": "plms 50"}  # each by its own solver
INTERVALS = (2, 3, 5)
COSTS = (0.25, 0.33, 0.4, 0.5, 0.6, 0.7)
_EVEN = "even plans of all steps"
KINDS = {"fewer steps, order 1": "order 1 over fewer steps", **dict.fromkeys(("optimal", "tuned"), "tuned or optimal")}
KINDS |= dict.fromkeys(("order 1", "order 2"), _EVEN)
NEAREST, CHOOSING = "psnr_median_db", "choosing_psnr_db"  # of the scoring seeds, and of those that decide


def panels(results: Path) -> dict[tuple[str, str], list[Record]]:
    """The points of each model, solver and number of steps."""
    found = defaultdict(list)
    for record in read(results):
        if record.experiment == "pareto":
            found[str(record.settings["model"]), str(record.settings["panel"])].append(record)
    return found


def value(record: Record, name: str) -> float:
    return float(str(record.metrics.get(name, record.settings.get(name))))


def chosen(records: Iterable[Record], curves: Sequence[str], share: float) -> Record | None:
    """Of those that cost no more, the one that is nearest on the choosing seeds."""
    within = [r for r in records if r.settings["curve"] in curves and value(r, "share") <= share * (1 + 1e-9)]
    return max(within, key=lambda record: value(record, CHOOSING), default=None)


def row(records: Sequence[Record], interval: int) -> dict[str, object] | None:
    """Medians in dB at the cost of reuse, and the gain of the chosen prediction in the mean over seeds."""
    of = {int(str(r.settings["order"])): r for r in records if _is_paired(r, interval)}
    if 0 not in of:
        return None
    reuse = of[0]
    share = value(reuse, "share")
    fewer, best = (chosen(records, curves, share) for curves in (("fewer steps",), PREDICTED))
    assert best is not None
    return {
        "method": f"{reuse.row.split(',')[0]}, {reuse.settings['panel']}, N={interval}",
        "MACs (%)": f"{100 * share:.0f}",
        "fewer steps": "-" if fewer is None else f"{value(fewer, NEAREST):.1f}",
        "reuse": f"{value(reuse, NEAREST):.1f}",
        **{f"order {order}": f"{value(of[order], NEAREST):.1f}" for order in (1, 2)},
        "chosen": f"{value(best, NEAREST):.1f}",
        "over reuse in the mean": f"{value(best, 'psnr_db') - value(reuse, 'psnr_db'):+.1f}",
        "what it is": best.row.split(", ", 2)[2],
    }


def at_any_cost(points: Sequence[Sequence[Record]]) -> list[dict[str, object]]:
    """In how many panels the chosen prediction is nearer than the chosen fewer steps, and of which curve it is."""
    rows: dict[str, dict[str, object]] = defaultdict(dict)
    for share in COSTS:
        pairs = [(chosen(each, PREDICTED, share), chosen(each, ("fewer steps",), share)) for each in points]
        ahead = [best for best, fewer in pairs if best and (not fewer or value(best, NEAREST) > value(fewer, NEAREST))]
        column, curves = f"{share:.0%}", Counter(KINDS[str(best.settings["curve"])] for best, _ in pairs if best)
        rows[f"nearer than fewer steps, of {len(pairs)}"][column] = len(ahead)
        for kind in dict.fromkeys(KINDS.values()):
            rows[f"chosen: {kind}"][column] = curves[kind]
    return [{"share of the uncached MACs": name, **row} for name, row in rows.items()]


def _show(rows: Sequence[dict[str, object]]) -> None:
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True), end="\n\n")


def _is_paired(record: Record, interval: int) -> bool:
    """Whether it is one of the uniform plans of all steps."""
    curve = str(record.settings["curve"])
    return curve in ("order 0", "order 1", "order 2") and record.row.endswith(f"{curve}, N={interval}")


def main(results: Path) -> None:
    found = panels(results)
    rows = [row(found[name], interval) for name in SHOWN.items() if name in found for interval in INTERVALS]
    _show([each for each in rows if each])
    _show(at_any_cost(list(found.values())))
    for interval in INTERVALS:
        each = [r for records in found.values() if (r := row(records, interval)) is not None]
        reuse, fewer = (sum(_is_ahead(one, name) for one in each) for name in ("reuse", "fewer steps"))
        print(f"N={interval}: nearer than reuse in {reuse}, than fewer steps in {fewer} of {len(each)} panels")


def _is_ahead(one: dict[str, object], of: str) -> bool:
    return one[of] == "-" or float(str(one["chosen"])) > float(str(one[of]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Make the tables of README and docs/plans.md from the Pareto bench's results: at the cost of reuse, and at any cost.

python -m tox -e pareto && python -m bench.pareto.equal_cost results.json
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.pareto.aims import FEWER, PREDICTED, Point, chosen, lead, prediction, reuse
from deepcache.results.record import Record, read

SHOWN = {"mini-ldm": "ddim 50", "mini-ddpm": "ddim 50", "mini-sd": "plms 50"}  # each model with its own solver
INTERVALS = (2, 3, 5)
COSTS = (0.25, 0.33, 0.4, 0.5, 0.6, 0.7)
NEAREST = "psnr_median_db"
KINDS = {"fewer steps, order 1": "order 1 over fewer steps", **dict.fromkeys(("optimal", "tuned"), "tuned or optimal")}
KINDS |= dict.fromkeys(("order 1", "order 2"), "even plans of all steps")
PANEL = ("model", "solver", "uncached_steps")  # parts of a key that name the panel
_CHOOSING = "choosing_"


@dataclass(frozen=True)
class Recorded(Point):
    """A point that was read from a file of results."""

    record: Record


Panels = dict[tuple[str, str], list[Recorded]]


def panels(results: Path) -> Panels:
    """Return the points of each model, and of each solver with its number of steps."""
    found: Panels = defaultdict(list)
    for record in read(results):
        if record.table.name == "pareto":
            model, solver, steps = (record.key[name] for name in PANEL)
            found[str(model), f"{solver} {steps}"].append(_point(record))
    return found


def _point(record: Record) -> Recorded:
    settings, metrics = record.settings, {name: float(str(value)) for name, value in record.metrics.items()}
    means = {k.removeprefix(_CHOOSING): float(str(v)) for k, v in settings.items() if k.startswith(_CHOOSING)}
    key = {name: value for name, value in record.key.items() if name not in PANEL}
    return Recorded(key, str(settings["point"]), metrics["share"], metrics, record.per_seed, means, record)


def at_equal_cost(name: tuple[str, str], points: Sequence[Point], interval: int) -> dict[str, object]:
    """Return a row of the table at the cost of reuse: medians in dB, and what the prediction gains in the mean."""
    base, best = reuse(points, interval), prediction(points, interval)
    assert base is not None
    assert best is not None
    by_order = {n: next(p for p in points if p.key == {"curve": f"order {n}", "interval": interval}) for n in (1, 2)}
    fewer = chosen(points, (FEWER,), base.share)
    return {
        "model, solver, reuse's N": f"{name[0]}, {name[1]}, N={interval}",
        "MACs (%)": f"{100 * base.share:.0f}",
        "fewer steps": "-" if fewer is None else f"{fewer.metrics[NEAREST]:.1f}",
        "reuse": f"{base.metrics[NEAREST]:.1f}",
        **{f"order {n}": f"{point.metrics[NEAREST]:.1f}" for n, point in by_order.items()},
        "chosen": f"{best.metrics[NEAREST]:.1f}",
        "over reuse in the mean": f"{best.metrics['psnr_db'] - base.metrics['psnr_db']:+.1f}",
        "what it is": best.name,
    }


def at_any_cost(all_points: Sequence[Sequence[Point]]) -> list[dict[str, object]]:
    """Return the table at any cost: how many panels prediction leads fewer steps in, and which curves are chosen."""
    rows: dict[str, dict[str, object]] = defaultdict(dict)
    for share in COSTS:
        found = [best for points in all_points if (best := chosen(points, PREDICTED, share))]
        column, kinds = f"{share:.0%}", Counter(KINDS[best.curve] for best in found)
        ahead = sum((lead(points, share) or 0) > 0 for points in all_points)
        rows[f"nearer than fewer steps, of {len(all_points)}"][column] = ahead
        for kind in dict.fromkeys(KINDS.values()):
            rows[f"chosen: {kind}"][column] = kinds[kind]
    return [{"share of the uncached MACs": name, **row} for name, row in rows.items()]


def nearer(all_points: Sequence[Sequence[Point]], interval: int) -> tuple[int, int]:
    """Count the panels whose chosen prediction is nearer than reuse, and than fewer steps, at the cost of reuse."""
    bases = [(points, base) for points in all_points if (base := reuse(points, interval))]
    gains = [prediction(points, interval).metrics[NEAREST] - base.metrics[NEAREST] for points, base in bases]
    return sum(gain > 0 for gain in gains), sum((lead(points, base.share) or 0) > 0 for points, base in bases)


def main(results: Path) -> None:
    found = panels(results)
    _show(
        [
            at_equal_cost(name, found[name], interval)
            for name in SHOWN.items()
            if name in found
            for interval in INTERVALS
        ]
    )
    _show(at_any_cost([*found.values()]))
    for interval in INTERVALS:
        than_reuse, than_fewer = nearer([*found.values()], interval)
        print(
            f"N={interval}: nearer than reuse in {than_reuse}, than fewer steps in {than_fewer} of {len(found)} panels"
        )


def _show(rows: Sequence[dict[str, object]]) -> None:
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True), end="\n\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

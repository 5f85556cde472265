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

from bench.pareto.aims import FEWER, PREDICTED, TARGETS, Point, chosen, num_nearer, prediction, reuse
from deepcache.plan import IDLE, CachePlan
from deepcache.results.record import Record, read

SHOWN = {"mini-ldm": "ddim 50", "mini-ddpm": "ddim 50", "mini-sd": "plms 50"}  # each model with its own solver
INTERVALS = (2, 3, 5)
OF_KINDS, SHARES = ("ddim 50", "plms 50", "dpm-solver++ 20"), (0.25, 0.33, 0.5)  # of the table of kinds
OF_PLANS = ("reuse", "predicted shallow", "idle", "mixed", FEWER)  # the kinds
NEAREST = "psnr_median_db"
KINDS = dict.fromkeys(("order 1", "order 2", "order auto"), "even shallow plans")
KINDS |= {"fewer steps, order 1": "shallow over fewer steps", "idle": "idle", "idle over fewer steps": "idle"}
KINDS |= {"idle, searched": "idle, searched by the real error", "mixed": "mixed", "tuned": "tuned"}
GUIDANCE = "guidance_scale"  # part of the key of panels whose scale is not the protocol's
PANEL = ("model", "solver", "uncached_steps", GUIDANCE)  # parts of a key that name the panel
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
            model, solver, steps, guidance = (record.key.get(name) for name in PANEL)
            strong = "" if guidance is None else f", guidance {guidance}"
            found[str(model), f"{solver} {steps}{strong}"].append(_point(record))
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
    default = next(p for p in points if p.key == {"curve": "order auto", "interval": interval})
    fewer = chosen(points, (FEWER,), base.share)
    return {
        "model, solver, reuse's N": f"{name[0]}, {name[1]}, N={interval}",
        "MACs (%)": f"{100 * base.share:.0f}",
        "fewer steps": "-" if fewer is None else f"{fewer.metrics[NEAREST]:.1f}",
        "reuse": f"{base.metrics[NEAREST]:.1f}",
        "default, its MACs (%)": f"{default.metrics[NEAREST]:.1f}, {100 * default.share:.0f}",
        "chosen": f"{best.metrics[NEAREST]:.1f}",
        "over reuse in the mean": f"{best.metrics['psnr_db'] - base.metrics['psnr_db']:+.1f}",
        "what it is": best.name,
    }


def at_any_cost(all_points: Sequence[Sequence[Point]]) -> list[dict[str, object]]:
    """Return the table at any cost: how many panels prediction leads fewer steps in, and which curves are chosen."""
    rows: dict[str, dict[str, object]] = defaultdict(dict)
    for share, aim in TARGETS.items():
        found = [best for points in all_points if (best := chosen(points, PREDICTED, share))]
        column, kinds = f"{share:.0%}", Counter(KINDS[best.curve] for best in found)
        rows[f"nearer than fewer steps, of {len(all_points)}"][column] = num_nearer(all_points, share)
        rows["aim, of 27"][column] = aim
        for kind in dict.fromkeys(KINDS.values()):
            rows[f"chosen: {kind}"][column] = kinds[kind]
    return [{"share of the uncached MACs": name, **row} for name, row in rows.items()]


def by_kind(name: tuple[str, str], points: Sequence[Recorded], share: float) -> dict[str, object]:
    """Return a row of the table of kinds: of each kind, the median of the plan that is chosen within a share."""
    row: dict[str, object] = {"model, solver": ", ".join(name), "MACs at most (%)": f"{100 * share:.0f}"}
    for kind in OF_PLANS:
        alike = [point for point in points if kind_of(point) == kind]
        best = chosen(alike, (FEWER,) if kind == FEWER else tuple({point.curve for point in alike}), share)
        row[kind] = "-" if best is None else f"{best.metrics[NEAREST]:.1f}"
    return row


def kind_of(point: Recorded) -> str:
    """Return which of `OF_PLANS` a point is; over fewer steps or not."""
    text = point.record.settings.get("plan")
    if text is None:
        return point.curve
    plan = CachePlan.from_json(str(text))
    if plan.has_idle_steps:
        return "idle" if plan.branch == IDLE else "mixed"
    return "reuse" if plan.order == 0 else "predicted shallow"


def nearer(all_points: Sequence[Sequence[Point]], interval: int) -> tuple[int, int]:
    """Count the panels whose chosen prediction is nearer than reuse, and than fewer steps, at the cost of reuse."""
    bases = [(points, base) for points in all_points if (base := reuse(points, interval))]
    gains = [prediction(points, interval).metrics[NEAREST] - base.metrics[NEAREST] for points, base in bases]
    return sum(gain > 0 for gain in gains), sum(num_nearer([points], base.share) for points, base in bases)


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
    ordinary = [points for points in found.values() if GUIDANCE not in points[0].record.key]
    _show(at_any_cost(ordinary))
    shown = [name for name in found if name[1].split(",")[0] in OF_KINDS]
    _show([by_kind(name, found[name], share) for name in shown for share in SHARES])
    for interval in INTERVALS:
        than_reuse, than_fewer = nearer(ordinary, interval)
        of = f"of {len(ordinary)} panels"
        print(f"N={interval}: nearer than reuse in {than_reuse}, than fewer steps in {than_fewer} {of}")


def _show(rows: Sequence[dict[str, object]]) -> None:
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True), end="\n\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

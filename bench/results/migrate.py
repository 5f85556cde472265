"""Give the committed records and the baseline their keys, once, from schema 1: `python bench/results/migrate.py`."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODULES = {
    "table1": "table1_imagenet", "table2": "table2_ddpm", "table3": "table3_stable_diffusion",
    "table4": "table4_fewer_steps", "table5": "table5_zeroed_feature", "table7": "table7_center_power",
    "table12": "table12_branch", "scheduler": "scheduler_ablation", "layerwise": "layerwise_ablation",
    "diversity": "diversity", "figure7": "figure7_interval", "figure2": "figure2_features", "workflows": "workflows",
    "macs": "macs", "prediction": "prediction", "summary": "summary", "pareto": "pareto",
    "pareto_targets": "pareto_targets", "upstream": "vs_upstream", "macs_layers": "macs_layers",
}  # fmt: skip


def found(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match.group(1)) if match else 0


def key(entry: dict[str, Any]) -> dict[str, Any]:
    row, name, own = entry["row"], entry["experiment"], entry["settings"]
    interval, order, branch = found(r"N=(\d+)", row), found(r"order (\d)", row), found(r"branch (\d+)", row)
    first, *rest = row.split(", ")
    last = rest[-1] if rest else ""
    model = own.get("model")
    kind = "uncached" if "uncached" in row else "uniform"
    if name == "table1":
        kind = first.split()[0] if not first[0].isdigit() else "fewer steps"
        return {"method": kind, "interval": interval or 1, "order": order, "branch": branch, "solver": own["scheduler"]}
    if name == "table2":
        return {"model": model, "solver": own["scheduler"], "interval": interval or 1}
    if name == "table3":
        if first.startswith("PLMS"):
            return {"method": "PLMS", "steps": found(r"(\d+) steps", row)}
        if first.startswith("mini-bk"):
            return {"method": "pruned", "size": first.removeprefix("mini-bk-")}
        return {"method": first.split()[0], "interval": interval, "order": order}
    if name == "table4":
        method = rest[0].rpartition(" N=")[0]
        return {"solver": first, "interval": interval, **({"method": method} if method else
                {"method": "uniform", "order": order})}  # fmt: skip
    if name == "table5":
        part = {"mini-ddpm": "unconditional", "mini-ldm": "class_conditional"}[model]
        return {"part": part, "interval": interval, "feature": "zeros" if last == "zeros" else "kept"}
    if name == "table7":
        return {"center": found(r"centre (\d+)", row), "power": float(last.removeprefix("power "))}
    if name == "table12":
        return {"model": model, "branch": branch}
    if name == "scheduler":
        return {"solver": first, "method": kind, "order": order}
    if name == "layerwise":
        return {"method": "uncached"} if kind == "uncached" else {"method": "uniform", "branch": branch}
    if name == "diversity":
        return {"prompt": first, "interval": interval or 1, "order": order}
    if name == "figure7":
        return {"interval": interval} if interval else {"picture": "grid"}
    if name == "figure2":
        return {"model": model, "up_block": found(r"up block (\d)", row)}
    if name == "workflows":
        return {"workflow": first, "method": kind, "order": order}
    if name == "macs":
        return {"model": model, "branch": branch} if "branch" in last else {"model": model, "interval": interval}
    if name == "macs_layers":
        return {"model": model, "stage": row.removeprefix(f"{model}, ")}
    if name == "prediction":
        if row == "tipped seeds":
            return {"picture": row}
        if "moved" in row:
            return {"solver": first.split()[0], "method": "moved start noise"}
        return {"solver": first.split()[0], "interval": interval, "order": order, "branch": own["branch"]}
    if name == "summary":
        return {"model": model, "interval": interval}
    if name == "upstream":
        return {"model": model, "batch": own["batch_size"], "entry": row.split(", ", 2)[2]}
    if name == "pareto_targets" and last == "curves":
        return {"model": model, "picture": "curves"}
    solver, steps = first_panel(own if "panel" in own else {"panel": rest[0]})
    panel = {"model": model, "solver": solver, "uncached_steps": int(steps)}
    if name == "pareto_targets":
        return panel
    curve, point = own["curve"], row.split(", ", 2)[2]
    own["point"] = point
    panel["curve"] = curve
    if curve.startswith("fewer"):
        panel["steps"] = found(r"(\d+) steps", point)
    if "N=" in point and curve != "tuned":
        panel["interval"] = found(r"N=(\d+)", point)
    if curve in ("optimal", "tuned"):
        panel |= {"branch": own["branch"], "order": own["order"], "full_steps": own["full_steps"]}
    return panel


def first_panel(own: dict[str, Any]) -> list[str]:
    return own["panel"].split()


def migrated(entry: dict[str, Any]) -> Any:
    from deepcache.results.record import from_dict

    assert entry["schema"] == 1
    module = importlib.import_module(f"bench.test_{MODULES[entry['experiment']]}")
    own = {name: value for name, value in entry.items() if name not in ("schema", "experiment", "row")}
    new = {"schema": 2, "table": entry["experiment"], "key": key(entry), "label": entry["row"], **own}
    new["test"] = f"bench/test_{MODULES[entry['experiment']]}.py"
    return from_dict(new, {module.TABLE.name: module.TABLE})


def main() -> None:
    from deepcache.results.baseline import _slim, _write
    from deepcache.results.gate import by_identity
    from deepcache.results.record import layout_entry

    for path in sorted(Path(__file__).parent.glob("*/records.jsonl")):
        records = [migrated(json.loads(line)) for line in path.read_text().splitlines()]
        by_identity(records, str(path))
        lines, known = [], set()
        for record in records:
            if record.table.name not in known:
                known.add(record.table.name)
                lines.append(layout_entry(record.table))
            lines.append(record.as_dict())
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        print(path.relative_to(ROOT), len(records), "records,", len(known), "tables")
    baseline = ROOT / "bench" / "baselines" / "mini.json"
    records = [migrated(entry) for entry in json.loads(baseline.read_text())["deepcache"]]
    by_identity(records, str(baseline))
    _write(baseline, [_slim(record) for record in records])
    print(baseline.relative_to(ROOT), len(records), "records")


if __name__ == "__main__":
    main()

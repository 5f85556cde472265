"""What `python -m deepcache macs` says: costs as a dictionary of plain integers, and as text."""

from __future__ import annotations

from typing import Any

from deepcache.costs.macs import EVERYTHING
from deepcache.models.architectures import Architecture
from deepcache.plan import MOST_STEPS, require_whole, uniform

GIGA = 1e9


def report(
    name: str, architecture: Architecture, *, branch: int | None, interval: int | None, num_steps: int
) -> dict[str, Any]:
    """Full step, shallow step and, with an interval, the mean over a uniform plan; all branches if none is given.

    Every figure is MACs in the paper's convention; those that end in `_with_attention` count everything.
    """
    require_whole("num_steps", num_steps, at_least=1, at_most=MOST_STEPS)
    convention = architecture.convention
    known = architecture.cost()
    branches = []
    for b in range(known.num_branches) if branch is None else [branch]:
        line: dict[str, Any] = {
            "branch": b,
            "shallow": known.shallow(b, convention),
            "shallow_with_attention": known.shallow(b, EVERYTHING),
        }
        if interval is not None:
            plan = uniform(num_steps, interval, b)
            line |= {
                "mean": round(known.mean(plan, convention)),
                "mean_with_attention": round(known.mean(plan, EVERYTHING)),
                "num_full": plan.num_full,
                "macs_ratio": known.ratio(plan),
            }
        branches.append(line)
    return {
        "model": name,
        "convention": str(convention),
        "context_tokens": architecture.context_tokens,
        "num_steps": num_steps,
        "interval": interval,
        "full": known.full(convention),
        "full_with_attention": known.full(EVERYTHING),
        "branches": branches,
        "stages": [{"stage": s.name, "macs": s.total(convention), "attention": s.attention} for s in known.stages],
    }


def to_text(found: dict[str, Any], *, layer_wise: bool) -> str:
    """Lines for a person, in G."""
    lines = [
        f"{found['model']}: {found['convention']}"
        + (f", {found['context_tokens']} context tokens" if found["context_tokens"] else ""),
        f"full step    {_giga(found['full'])}   (everything counted: {_giga(found['full_with_attention'])})",
    ]
    for line in found["branches"]:
        text = f"branch {line['branch']:<2}    shallow step {_giga(line['shallow'])}"
        if found["interval"] is not None:
            text += (
                f"   mean {_giga(line['mean'])} at N = {found['interval']} "
                f"({line['num_full']} of {found['num_steps']} steps full; {line['macs_ratio']:.2f} times fewer)"
            )
        lines.append(text)
    if layer_wise:
        lines += ["", f"{'stage':<28}{'MACs':>12}{'attention products':>22}"]
        lines += [f"{s['stage']:<28}{_giga(s['macs']):>12}{_giga(s['attention']):>22}" for s in found["stages"]]
    return "\n".join(lines)


def _giga(macs: int) -> str:
    """Two decimals, as the paper prints; four below 1 G, where the embedded models are."""
    return f"{macs / GIGA:.2f} G" if macs >= GIGA else f"{macs / GIGA:.4f} G"

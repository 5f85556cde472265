"""This table has the MACs of every stage of every real architecture, and the branch from which shallow steps run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from matplotlib.figure import Figure

from bench.harness.requirements import Needs
from deepcache.costs.macs import EVERYTHING, Convention, Cost, StageCost
from deepcache.models.architectures import ARCHITECTURES, architecture
from deepcache.results.figures import picture
from deepcache.results.layout import Column, Layout

NEEDS = Needs(())
TABLE = Layout(
    "macs_layers",
    title="MACs of every stage, and the branch from which on a shallow step runs it",
    look="Look for the stages with the largest shares: a branch below the last column's number leaves a stage out.",
    columns=(
        Column("macs", "MACs (G)", 4, scale=1e9),
        Column("macs_share", "of a full step (%)", 1, scale=0.01),
        Column("attention_macs", "attention products beside (G)", 4, scale=1e9),
        Column("live_from", "live from branch", 0),
    ),
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_macs_of_every_layer(record: Callable[..., None], name: str) -> None:
    known = architecture(name)
    cost, convention = known.cost(), known.convention
    full = cost.full(convention)
    alt = f"{name}: MACs of every stage, from the first to the last; {full / 1e9:.4g} G on a full step."
    pictures = [picture(f"macs-{name}", alt, _bars(cost, convention))]
    for kind, live, stage in _stages(cost):
        macs = stage.total(convention)
        record(
            table=TABLE,
            key={"model": name, "stage": stage.name},
            label=f"{name}, {stage.name}",
            settings={"model": name, "extractor": "none", "macs_convention": str(convention), "kind": kind},
            metrics={"macs": macs, "macs_share": macs / full, "attention_macs": stage.attention}
            | ({} if live is None else {"live_from": live}),
            pictures=pictures if stage is cost.outside else [],
        )
    for branch in range(cost.num_branches):
        live_macs = [s.total(convention) for _, live, s in _stages(cost) if live is not None and live <= branch]
        assert sum(live_macs) == cost.shallow(branch, convention)


def _stages(cost: Cost) -> Iterator[tuple[str, int | None, StageCost]]:
    """Yield every stage in the order of execution: its kind, the branch from which on shallow steps run it, its cost.

    The branch of the mid stage is None, since no shallow step runs it.
    """
    yield "outside", 0, cost.outside
    yield from (("down", branch, stage) for branch, stage in enumerate(cost.down))
    yield "mid", None, cost.mid
    yield from (("up", branch, stage) for branch, stage in reversed([*enumerate(cost.up)]))


def _bars(cost: Cost, convention: Convention) -> Figure:
    stages = cost.stages
    figure = Figure(figsize=(6.4, 0.17 * len(stages) + 0.9), layout="constrained")
    axis = figure.subplots()
    labels, counted = [stage.name for stage in stages], [stage.total(convention) / 1e9 for stage in stages]
    axis.barh(labels, counted, label="counted by the paper")
    axis.barh(labels, [stage.attention / 1e9 for stage in stages], left=counted, label="attention products")
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.set_xlim(0, 1.05 * max(stage.total(EVERYTHING) for stage in stages) / 1e9)
    axis.tick_params(labelsize=6)
    axis.set_xlabel("GMACs on one sample")
    axis.legend(fontsize=7)
    return figure

"""What each bench needs of the paper's scale, and which benches a command line runs. Imports nothing slow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _pytest.mark.expression import Expression

NAMED_ALONE = ("test_pareto", "test_pareto_targets", "test_vs_upstream")


@dataclass(frozen=True)
class Needs:
    """The `parts` of a scale whose models play; whether their samples are compared with real images, or by LPIPS."""

    parts: tuple[str, ...]
    real_images: bool = False
    lpips: bool = False


_ALL = ("class_conditional", "unconditional", "prompted")
NEEDS = {
    "test_table1_imagenet": Needs(("class_conditional",), real_images=True),
    "test_table2_ddpm": Needs(("pixels",), real_images=True),
    "test_table3_stable_diffusion": Needs(("prompted", "pruned")),
    "test_table4_fewer_steps": Needs(("class_conditional",), real_images=True),
    "test_table5_zeroed_feature": Needs(("class_conditional", "unconditional"), real_images=True),
    "test_table7_center_power": Needs(("class_conditional",), real_images=True),
    "test_table12_branch": Needs(("unconditional", "prompted"), real_images=True),
    "test_figure2_features": Needs(_ALL),
    "test_figure7_interval": Needs(("prompted",)),
    "test_scheduler_ablation": Needs(("prompted",)),
    "test_layerwise_ablation": Needs(("prompted",)),
    "test_diversity": Needs(("prompted",), lpips=True),
    "test_workflows": Needs(("prompted",)),
    "test_macs": Needs(("unpruned",)),
    "test_macs_layers": Needs(()),
    "test_prediction": Needs(("class_conditional",)),
    "test_summary": Needs(_ALL),
    "test_pareto": Needs(_ALL),
    "test_pareto_targets": Needs(_ALL),
    "test_vs_upstream": Needs(("raced",)),
}


def needs(config: Any) -> list[Needs]:
    """Of the benches that the command line runs, as far as it tells before they are collected."""
    keyword = config.getoption("keyword")
    named = dict.fromkeys(name for argument in config.args for name in _benches(config, str(argument)))
    return [NEEDS[name] for name in named if name in NEEDS and _may_be_selected(name, keyword)]


def _benches(config: Any, argument: str) -> Iterator[str]:
    path = Path(config.invocation_params.dir, argument.split("::")[0])
    if not path.is_dir():
        yield path.stem
        return
    for file in sorted(path.glob("test_*.py")):
        if file.stem not in NAMED_ALONE or config.getoption("all"):
            yield file.stem


def _may_be_selected(name: str, keyword: str) -> bool:
    """By pytest's rules for `-k`. A word that no bench's name has is of single tests, which are not known yet."""
    if not keyword:
        return True

    def selected(guess: bool) -> bool:  # noqa: FBT001
        def has(word: str, **_: Any) -> bool:
            known = any(word.lower() in other for other in NEEDS)
            return word.lower() in name if known else guess

        return Expression.compile(keyword).evaluate(has)

    try:
        return any(map(selected, (True, False)))
    except Exception:  # one that is no expression, which pytest says itself: in each version by another class
        return True

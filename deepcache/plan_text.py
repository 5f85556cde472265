"""Plans as text, for command lines and files: `uniform,interval=3,branch=0,order=1`, or JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from deepcache.errors import DeepCacheError, shown
from deepcache.files import json_value, read_text
from deepcache.plan import CachePlan, quadratic, uniform
from deepcache.temporary import whole

UNCACHED = "uncached"
GRAMMAR = (
    "uncached; uniform,interval=N; quadratic,num_full=K,center=C,power=P; "
    "the last two with ,branch=B ,order=0|1|2 ,last_step_full; or a plan's JSON file"
)
_KINDS: dict[str, Callable[..., CachePlan]] = {"uniform": uniform, "quadratic": quadratic}
_REQUIRED = {"uniform": {"interval"}, "quadratic": {"num_full", "center", "power"}}
_OPTIONAL = {"uniform": {"last_step_full"}, "quadratic": {"last_step_full", "signed_root"}}
_FLAGS = {"last_step_full", "signed_root"}
_DECIMALS = {"center", "power"}
_KIND = "a plan's JSON"
_MOST_BYTES = 16 << 20  # of its file: a million full steps


def parse(text: str, num_steps: int) -> CachePlan | None:
    """The plan that a text or a file stands for, of a generation of `num_steps` U-Net calls; None for no cache.

        parse("uniform,interval=3,branch=0,order=1", 50)

    Raises:
        DeepCacheError: neither of `GRAMMAR`, or a file whose plan is of another length.
    """
    kind, *words = [word.strip() for word in text.split(",")]
    if text == UNCACHED:
        return None
    if kind in _KINDS:
        return _KINDS[kind](num_steps, **_arguments(kind, words, text))
    if not os.path.isfile(text):  # unlike Path.is_file, also for a text that is too long for a name
        raise DeepCacheError(f"expected a plan ({GRAMMAR}), got {shown(text)}, which is neither")
    return _of_length(load_plan(text), num_steps, text)


def load_plan(path: str | Path) -> CachePlan:
    """A plan from the JSON file that `save_plan` wrote.

    Raises:
        DeepCacheError: no such file, or not a plan's.
    """
    return from_json(read_text(path, _KIND, most_bytes=_MOST_BYTES), str(path))


def save_plan(plan: CachePlan, path: str | Path) -> None:
    """Write a plan's JSON, for `load_plan` and every `--plan`.

    Raises:
        DeepCacheError: it cannot be written.
    """
    with whole(Path(path)) as file:
        file.write(to_json(plan).encode() + b"\n")


def to_json(plan: CachePlan) -> str:
    """One line, read by `from_json`."""
    return json.dumps(asdict(plan))


def from_json(text: str, source: str = "the text") -> CachePlan:
    """What `to_json` wrote; `source` is named where it is not that.

    Raises:
        DeepCacheError: no JSON, another's keys, or values that make no plan.
    """
    found = json_value(text, _KIND, source)
    known = {field.name for field in fields(CachePlan)}
    if not isinstance(found, dict) or not {"num_steps", "full_steps"} <= found.keys() <= known:
        raise DeepCacheError(f"expected {_KIND} in {source}, with {', '.join(sorted(known))}")
    return CachePlan(**found)


def _of_length(plan: CachePlan, num_steps: int, source: str) -> CachePlan:
    if plan.num_steps != num_steps:
        raise DeepCacheError(f"expected a plan of {num_steps} U-Net calls, got one of {plan.num_steps} in {source}")
    return plan


def _arguments(kind: str, words: list[str], text: str) -> dict[str, Any]:
    found = dict(_argument(word, text) for word in words)
    required, optional = _REQUIRED[kind], _OPTIONAL[kind] | {"branch", "order"}
    if not required <= found.keys() <= required | optional or len(found) < len(words):
        raise DeepCacheError(
            f"expected {kind} with {', '.join(sorted(required))}, and if wanted {', '.join(sorted(optional))}, "
            f"each once; got {shown(text)}"
        )
    return found


def _argument(word: str, text: str) -> tuple[str, Any]:
    name, _, value = word.partition("=")
    if word in _FLAGS:
        return name, True
    if name in _DECIMALS and re.fullmatch(r"\d{1,18}(\.\d+)?", value):
        return name, float(value)
    if name not in _FLAGS and re.fullmatch(r"\d{1,18}", value):
        return name, int(value)
    raise DeepCacheError(f"expected a plan ({GRAMMAR}), got {shown(word)} in {shown(text)}")

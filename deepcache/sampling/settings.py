"""How a model is sampled: as asked, and for the rest as its protocol says."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from math import isfinite
from typing import Any

from deepcache.errors import DeepCacheError
from deepcache.models.registry import MODELS
from deepcache.plan import MOST_STEPS, require_whole

SCALED = ("euler", "heun")  # solvers in noise levels, whose latents a pipeline must scale


@dataclass(frozen=True)
class Settings:
    """A scheduler's name, its steps, and the guidance scale, None for a model that has none.

    Raises:
        DeepCacheError: no step, more than `MOST_STEPS`, or a guidance scale that is no finite number.
    """

    scheduler: str
    num_steps: int
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        require_whole("num_steps", self.num_steps, at_least=1, at_most=MOST_STEPS)
        if self.guidance_scale is not None and not isfinite(self.guidance_scale):
            raise DeepCacheError(f"expected a finite guidance scale, got {self.guidance_scale}; 1 is no guidance")

    @property
    def arguments(self) -> dict[str, Any]:
        """The pipeline's."""
        scale = {} if self.guidance_scale is None else {"guidance_scale": self.guidance_scale}
        return {"num_inference_steps": self.num_steps, **scale}


def settings_of(model: str, pipe: Any, **asked: Any) -> Settings:
    """What is asked, one or more of the attributes of `Settings`, and the rest by the model's protocol.

    Args:
        model: a name; one that has no protocol must be told all.
        pipe: the model's; whether it has guidance is told by its arguments.
        **asked: None stands for not asked.

    Raises:
        DeepCacheError: a model without protocol that is told too little, or a guidance scale for one that has none.
    """
    names = ["scheduler", "num_steps"]
    if "guidance_scale" in signature(pipe.__call__).parameters:
        names.append("guidance_scale")
    given = {name: value for name, value in asked.items() if value is not None}
    if not given.keys() <= set(names):
        raise DeepCacheError(f"expected no guidance scale, which {type(pipe).__name__} does not take; leave it out")
    known = MODELS.get(model)
    protocol = None if known is None else known.protocol
    if protocol is None and len(given) < len(names):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in names if name not in given)
        raise DeepCacheError(f"expected {options}, since {model} has no protocol; protocols are of {', '.join(MODELS)}")
    scheduler = given.get("scheduler", getattr(protocol, "scheduler", None))
    if type(pipe).__name__ == "DDPMPipeline" and scheduler in SCALED:
        raise DeepCacheError(
            "expected a scheduler whose noise begins at standard deviation 1, since DDPMPipeline scales nothing, got "
            f"{scheduler}; take ddim, ddim-quadratic, plms, pndm or dpm-solver++"
        )
    found: dict[str, Any] = {name: given.get(name, getattr(protocol, name, None)) for name in names}
    return Settings(**found)

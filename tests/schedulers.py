"""Every scheduler that diffusers has, by name, and the options that its constructor knows."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import diffusers
from diffusers import SchedulerMixin

# an option's name: the configuration that takes it
OPTIONS: dict[str, dict[str, Any]] = {
    "Karras sigmas": {"use_karras_sigmas": True},
    "exponential sigmas": {"use_exponential_sigmas": True},
    "beta sigmas": {"use_beta_sigmas": True},
    "flow sigmas": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "leading": {"timestep_spacing": "leading"},
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "zero SNR": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    "no PRK steps": {"skip_prk_steps": True},
    "SDE": {"algorithm_type": "sde-dpmsolver++"},
    "order 1": {"solver_order": 1},
    "order 3": {"solver_order": 3},
}
_NEEDED = {"noise_sampler_seed": 0, "original_inference_steps": 25}  # the same noise again; a schedule of few steps


@cache
def classes() -> dict[str, type]:
    """Those of this diffusers version whose requirements are installed."""
    found = {name: getattr(diffusers, name) for name in dir(diffusers)}
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, SchedulerMixin)}


def options(name: str) -> list[str]:
    """The options that a scheduler's constructor knows."""
    known = inspect.signature(classes()[name].__init__).parameters
    return [option for option, config in OPTIONS.items() if config.keys() <= known.keys()]


@cache
def takes(name: str, option: str | None = None) -> bool:
    """Whether a constructor asks for nothing more, and does not refuse an option that it knows."""
    try:
        scheduler(name, option)
    except (TypeError, ValueError, NotImplementedError):
        return False
    return True


def scheduler(name: str, option: str | None = None) -> Any:
    kind = classes()[name]
    known = inspect.signature(kind.__init__).parameters
    needed = {key: value for key, value in _NEEDED.items() if key in known}
    return kind(**{**needed, **(OPTIONS[option] if option else {})})

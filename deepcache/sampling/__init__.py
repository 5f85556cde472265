"""Seeds to samples: sample i depends on seed i alone."""

from typing import TYPE_CHECKING

from deepcache.lazy import lazy

if TYPE_CHECKING:
    from deepcache.sampling.conditions import conditions_of, labels_of, prompts_of
    from deepcache.sampling.protocols import PROTOCOLS, Protocol
    from deepcache.sampling.samples import sample
    from deepcache.sampling.schedulers import SCHEDULERS, scheduler

__all__ = [
    "PROTOCOLS",
    "SCHEDULERS",
    "Protocol",
    "conditions_of",
    "labels_of",
    "prompts_of",
    "sample",
    "scheduler",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "conditions": ("conditions_of", "labels_of", "prompts_of"),
        "protocols": ("PROTOCOLS", "Protocol"),
        "samples": ("sample",),
        "schedulers": ("SCHEDULERS", "scheduler"),
    },
)

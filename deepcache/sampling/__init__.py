"""Seeds to samples: sample i depends on seed i alone, up to the rounding of floats (docs/sampling.md)."""

from typing import TYPE_CHECKING

from deepcache.lazy import lazy

if TYPE_CHECKING:
    from deepcache.sampling.batches import Batches
    from deepcache.sampling.conditions import conditions_of, labels_of, prompts_of
    from deepcache.sampling.identity import manifest_of
    from deepcache.sampling.manifest import Manifest
    from deepcache.sampling.protocols import PROTOCOLS, Protocol
    from deepcache.sampling.samples import sample
    from deepcache.sampling.schedulers import SCHEDULERS, num_calls, scheduler
    from deepcache.sampling.settings import Settings
    from deepcache.sampling.store import Store
    from deepcache.sampling.workers import Worker

__all__ = [
    "PROTOCOLS",
    "SCHEDULERS",
    "Batches",
    "Manifest",
    "Protocol",
    "Settings",
    "Store",
    "Worker",
    "conditions_of",
    "labels_of",
    "manifest_of",
    "num_calls",
    "prompts_of",
    "sample",
    "scheduler",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "batches": ("Batches",),
        "conditions": ("conditions_of", "labels_of", "prompts_of"),
        "identity": ("manifest_of",),
        "manifest": ("Manifest",),
        "protocols": ("PROTOCOLS", "Protocol"),
        "samples": ("sample",),
        "schedulers": ("SCHEDULERS", "num_calls", "scheduler"),
        "settings": ("Settings",),
        "store": ("Store",),
        "workers": ("Worker",),
    },
)

"""Models by name, folder or file, as pipelines; the embedded models need no download."""

from typing import TYPE_CHECKING

from deepcache.lazy import lazy

if TYPE_CHECKING:
    from deepcache.models.embedded import load_extractor, recommended
    from deepcache.models.loading import load, load_ldm
    from deepcache.models.registry import MODELS

__all__ = ["MODELS", "load", "load_extractor", "load_ldm", "recommended"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "embedded": ("load_extractor", "recommended"),
        "loading": ("load", "load_ldm"),
        "registry": ("MODELS",),
    },
)

"""Models by name, folder or file, as pipelines: the embedded ones run without a download."""

from typing import TYPE_CHECKING

from deepcache.lazy import lazy

if TYPE_CHECKING:
    from deepcache.models.catalog import CATALOG, Checkpoint
    from deepcache.models.embedded import EMBEDDED, load_extractor
    from deepcache.models.ldm import load_ldm
    from deepcache.models.loading import load
    from deepcache.models.recommendations import recommended

__all__ = ["CATALOG", "EMBEDDED", "Checkpoint", "load", "load_extractor", "load_ldm", "recommended"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "catalog": ("CATALOG", "Checkpoint"),
        "embedded": ("EMBEDDED", "load_extractor"),
        "ldm": ("load_ldm",),
        "loading": ("load",),
        "recommendations": ("recommended",),
    },
)

"""Models by name, folder or file, as pipelines: the embedded ones run without a download."""

from deepcache.models.catalog import CATALOG, Checkpoint
from deepcache.models.embedded import EMBEDDED, load_extractor
from deepcache.models.ldm import load_ldm
from deepcache.models.loading import load

__all__ = ["CATALOG", "EMBEDDED", "Checkpoint", "load", "load_extractor", "load_ldm"]

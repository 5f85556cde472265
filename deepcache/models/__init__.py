"""Models by name: the embedded ones, ready to run without a download."""

from deepcache.models.embedded import EMBEDDED, load, load_extractor

__all__ = ["EMBEDDED", "load", "load_extractor"]

"""Seeds to samples: sample i depends on seed i alone."""

from deepcache.sampling.samples import labels_of, sample

__all__ = ["labels_of", "sample"]

"""Seeds to samples: sample i depends on seed i alone."""

from deepcache.sampling.conditions import conditions_of, labels_of, prompts_of
from deepcache.sampling.samples import sample
from deepcache.sampling.schedulers import SCHEDULERS, scheduler

__all__ = ["SCHEDULERS", "conditions_of", "labels_of", "prompts_of", "sample", "scheduler"]

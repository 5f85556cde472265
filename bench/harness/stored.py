"""A run's samples in a store on disk: read where they are there, else sampled; never all in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepcache.cache.caching import Cache
from deepcache.plan import CachePlan
from deepcache.sampling.batches import Batches
from deepcache.sampling.identity import manifest_of
from deepcache.sampling.manifest import LAYOUT
from deepcache.sampling.progress import Progress
from deepcache.sampling.settings import Settings
from deepcache.sampling.store import Store
from deepcache.sampling.stored import StoredImages
from deepcache.sampling.workers import Worker

if TYPE_CHECKING:
    from bench.harness.workload import Run, Workload


def stored_images(workload: Workload, run: Run, seeds: range, description: str) -> tuple[StoredImages, Cache | None]:
    """The images of a run, from its store below `workload.stores`; and the cache of what was sampled now."""
    assert workload.stores is not None
    settings = Settings(run.scheduler, run.num_steps, workload.protocol.guidance_scale)
    rule = workload.conditions.rule + (", features zeroed" if run.zeroed else "")
    plan = run.plan if isinstance(run.plan, CachePlan) else None
    with workload.caching(run) as cache:
        weights = "trained" if workload.is_trained else workload.weights  # as `deepcache sample` says
        manifest = manifest_of(
            workload.pipe,
            settings,
            plan,
            rule,
            model=workload.model,
            weights=weights,
            digest=workload.weights_hash,
            batch_size=workload.protocol.batch_size,
        )
        # a store that is there decides how its samples are batched, unless another size was asked for
        follows = LAYOUT if workload.is_halved else ("shard_size",)
        store = Store.below(workload.stores, manifest, follows=follows)
        worker = Worker()
        with Progress(sum(map(len, store.work(seeds, worker))), description) as progress:
            batches = Batches(
                workload.pipe,
                workload.conditions,
                settings.arguments,
                store.manifest.batch_size,
                is_halved=workload.is_halved,
                say=progress.say,
                advance=progress.advance,
            )
            store.fill(seeds, batches, worker)
    return StoredImages(store, seeds), cache if cache is not None and cache.generations else None

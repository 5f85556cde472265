"""This module measures rows of tables: it samples a row and its uncached counterpart, times both, and keeps records."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from bench.harness.timing import Timing, interleaved, rounds_of
from bench.harness.workload import Run, Samples, Workload
from deepcache.cache.caching import Cache
from deepcache.metrics.fidelity import Errors, drift, psnr_of, quality, squared_errors
from deepcache.metrics.reference import Reference
from deepcache.metrics.statistics import Statistics
from deepcache.plan import CachePlan
from deepcache.results.layout import Layout

NOT_MEASURED = "not measured: pytest-benchmark is disabled, as it is where tests run in parallel"


@dataclass(frozen=True)
class Found:
    """The samples, metrics and times of a row, for the assertions of its test.

    Attributes:
        samples, uncached: the row's samples and the uncached ones; None for random weights, which make noise.
        metrics: the metrics as recorded.
        timing: seconds of the rounds; None where nothing was timed.
    """

    samples: Samples | None
    uncached: Samples | None
    metrics: dict[str, Any]
    timing: Timing | None


@dataclass(frozen=True)
class Measure:
    """The fixture: `measure(TABLE, key, workload, run, uncached, seeds)` measures a row and keeps its record.

    Attributes:
        benchmark: pytest-benchmark's fixture.
        record: keeps the record of a row.
        reference: gives the statistics of a model's real images.
        rounds: timed rounds of a row.
    """

    benchmark: Any
    record: Callable[..., None]
    reference: Callable[[str], Reference]
    rounds: int

    def __call__(
        self,
        table: Layout,
        key: dict[str, Any],
        workload: Workload,
        run: Run,
        uncached: Run,
        seeds: range,
        *,
        label: str = "",
        timed: bool = True,
        against: Workload | None = None,
        with_quality: bool = False,
        settings: Mapping[str, Any] | None = None,
        metrics: Callable[[Samples, Samples], dict[str, Any]] | None = None,
    ) -> Found:
        """Measure a row and record it.

        Args:
            table: the layout of the table.
            key: what tells the row from the other rows of the table.
            workload: the row's model.
            run: the row's run.
            uncached: the run that it is compared with.
            seeds: seeds of the samples.
            label: the printed name of the row; made from the key if empty.
            timed: whether speed is measured, which rows that differ only in predictions or images do not need.
            against: the workload whose uncached run is timed beside the row's, if that is another model.
            with_quality: whether the samples are compared with real images, which takes a few hundred samples.
            settings: what distinguishes the row.
            metrics: gives more metrics from the row's and the uncached samples; they replace metrics of the same name.
        """
        self.benchmark.group = table.name
        timing = None
        if timed:
            timing = interleaved(self.benchmark, self.rounds, workload, run, against or workload, uncached)
        base = samples = None
        fidelity: dict[str, Any] = {}
        per_seed: dict[str, list[float]] = {}
        if workload.is_trained:
            base = workload.samples(uncached, seeds, f"uncached, {uncached.scheduler} {uncached.num_steps}")
            samples = workload.samples(run, seeds, label or table.name)
            fidelity, per_seed = self._scores(workload, samples, with_quality=with_quality)
            if run != uncached:
                fidelity |= self.change(samples, base)
                per_seed["psnr_db"] = psnr_of(errors(samples, base))
        if metrics:
            fidelity |= metrics(samples, base)
        cache = samples.cache if samples else timing.cache if timing else None
        found = {**costs(workload, run, uncached, cache), **_speed(timing, workload), **fidelity}
        self.record(
            table=table,
            key=key,
            label=label,
            settings={
                **describe(workload, run, uncached, seeds),
                **({"timing": self._timing(timing, workload)} if timed else {}),
                **(settings or {}),
            },
            metrics=found,
            per_seed=per_seed,
        )
        return Found(samples, base, found, timing)

    def _scores(
        self, workload: Workload, samples: Samples, *, with_quality: bool
    ) -> tuple[dict[str, Any], dict[str, list[float]]]:
        """Return the scores of the samples by themselves, over all seeds and for each seed."""
        found: dict[str, Any] = {}
        per_seed: dict[str, list[float]] = {}
        if with_quality:
            found |= quality(Statistics.of([samples.features]), self.reference(workload.model))
        if samples.clip_scores:
            found["clip_score"] = statistics.fmean(samples.clip_scores)
            per_seed["clip_score"] = samples.clip_scores
        return found, per_seed

    def _timing(self, timing: Timing | None, workload: Workload) -> str:
        if timing is None:
            return NOT_MEASURED
        count = workload.timed_images
        return rounds_of(self.rounds, f"{count} images, decoding included")

    @staticmethod
    def change(samples: Samples, uncached: Samples) -> dict[str, float]:
        """Return how far samples are from the uncached samples of the same seeds."""
        return drift(samples.features, uncached.features, errors(samples, uncached))


@lru_cache(maxsize=1)
def errors(samples: Samples, uncached: Samples) -> Errors:
    """Return the mean squared error of each image, (B,); the cache saves a row from reading its stores twice."""
    return squared_errors(samples.images, uncached.images)


def costs(workload: Workload, run: Run, uncached: Run, cache: Cache | None) -> dict[str, float]:
    """Return MACs of a sample and of a step, numbers of calls of each kind, and bytes of the cache.

    MACs of a step are averaged over the uncached run's steps. What the cache did must be what the plan says.
    """
    calls, of = workload.num_calls(run), workload.num_calls(uncached)
    if run.plan is None:
        total = workload.cost.full(workload.convention) * calls
        return {"macs": round(total / of), "total_macs": total, "num_full": calls, "num_shallow": 0, "num_idle": 0}
    plan = run.cache_plan
    total = round(workload.cost.mean(plan, workload.convention) * calls)
    found: dict[str, float] = {"macs": round(total / of), "total_macs": total}
    found |= {"num_full": plan.num_full, "num_shallow": plan.num_shallow, "num_idle": plan.num_idle}
    if cache is not None:
        # a generation that ran out of memory has fewer steps
        whole = [each for each in cache.generations if each.num_steps == plan.num_steps]
        assert {generation.full_steps for generation in whole} == {plan.full_steps}
        found["feature_bytes"] = whole[0].feature_bytes
    return found


def conditions(workload: Workload) -> dict[str, str | int]:
    """Return what a workload runs on; the gate compares times and fidelity only under equal conditions."""
    return {
        "weights": "embedded" if workload.is_mini and workload.is_trained else workload.weights,
        "device": workload.device_name,
        "dtype": workload.dtype_name,
        "num_threads": torch.get_num_threads(),
    }


def describe(workload: Workload, run: Run, uncached: Run, seeds: range) -> dict[str, str | int | float | bool]:
    """Return what was run, as plain scalars."""
    found: dict[str, str | int | float | bool] = {
        "model": workload.model,
        "extractor": workload.extractor.name if workload.is_trained and workload.extractor else "none",
        **conditions(workload),
        "scheduler": str(run.scheduler),
        "uncached_steps": uncached.num_steps,
        "num_steps": run.num_steps,
        "first_seed": seeds.start,
        "num_samples": len(seeds),
        "batch_size": min(workload.batch_size, len(seeds)),
        "macs_convention": f"{workload.convention}, mean over the uncached run's {workload.num_calls(uncached)} steps",
    }
    if workload.guidance_scale is not None:
        found["guidance_scale"] = workload.guidance_scale
    if workload.prompts_from is not None:
        found["prompts"] = workload.prompts_from
    if workload.clip is not None:
        found["clip"] = workload.clip.name
    if run.plan is not None:
        found |= {"branch": run.plan.branch, "order": run.plan.order}
    if isinstance(run.plan, CachePlan):
        found["full_steps"] = " ".join(map(str, run.plan.full_steps))
    return found


def _speed(timing: Timing | None, workload: Workload) -> dict[str, float]:
    if timing is None:
        return {}
    latency_s = statistics.median(timing.cached_s)
    throughput = workload.timed_images / latency_s
    return {"latency_s": latency_s, "throughput": throughput, "speedup": timing.speedup}

"""Diversity and variance (course project, 4.3): several seeds a prompt, cached and uncached."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from bench.harness import thresholds
from bench.harness.laws import is_judged
from bench.harness.loading import load_distance
from bench.harness.measure import describe
from bench.harness.workload import Run, Workload
from deepcache.metrics.fidelity import diversity
from deepcache.metrics.perceptual import Perceptual
from deepcache.sampling.conditions import prompts_of

PROMPTS = prompts_of([3, 27, 58, 9])  # a dress, a sneaker, a bag, an ankle boot
NUM_SEEDS = 12
METHODS = {"uncached": (1, 0), "N=3": (3, 0), "N=3, order 1": (3, 1), "N=10": (10, 0)}

pytestmark = pytest.mark.shows_images


@pytest.fixture(scope="module")
def perceptual(pytestconfig: pytest.Config) -> Perceptual:
    """LPIPS, or mini-features' distance where its weights are not found."""
    return load_distance(pytestconfig)


@pytest.fixture(scope="module")
def measured(prompted: Workload, perceptual: Perceptual) -> Callable[[Run, str], dict[str, float]]:
    """`measured(run, prompt)`: sampled and compared once."""

    @cache
    def among_seeds(run: Run, prompt: str) -> dict[str, float]:
        images, _ = prompted.images(
            run,
            range(NUM_SEEDS),
            batch_size=NUM_SEEDS,
            conditions=lambda some: {"prompt": [prompt] * len(some)},
            description=prompt,
        )
        return diversity(images, prompt, clip=prompted.clip, perceptual=perceptual)

    return among_seeds


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda text: text.replace(" ", "-"))
def test_diversity(
    record: Callable[..., None],
    prompted: Workload,
    perceptual: Perceptual,
    measured: Callable[[Run, str], dict[str, float]],
    prompt: str,
    method: str,
) -> None:
    interval, order = METHODS[method]
    uncached = prompted.uncached()
    run = uncached if interval == 1 else prompted.every(interval, order=order)
    metrics = measured(run, prompt)
    record(
        experiment="diversity",
        row=f"{prompt}, {method}",
        settings={
            **describe(prompted, run, uncached, range(NUM_SEEDS)),
            "perceptual": perceptual.name,
            "prompt": prompt,
            "interval": interval,
        },
        metrics=metrics,
    )
    if interval == 3 and is_judged(prompted):
        ratio = metrics["pairwise_perceptual"] / measured(uncached, prompt)["pairwise_perceptual"]
        assert 1 / thresholds.DIVERSITY_CHANGES_BY <= ratio <= thresholds.DIVERSITY_CHANGES_BY

"""Diversity and variance (course project, 4.3) compare several seeds of each prompt, cached and uncached."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from bench.harness.columns import column
from bench.harness.laws import Judge
from bench.harness.loading import load_distance
from bench.harness.measure import describe
from bench.harness.requirements import Needs
from bench.harness.workload import Run, Workload
from deepcache.metrics.fidelity import diversity
from deepcache.metrics.perceptual import Perceptual
from deepcache.results.layout import Layout
from deepcache.sampling.conditions import prompts_of

NEEDS = Needs(("prompted",), lpips=True)
TABLE = Layout(
    "diversity",
    title="Diversity and variance over seeds (course project, 4.3)",
    look="Compare a prompt's cached rows with its uncached row: the pairwise distances stay what they were.",
    columns=(
        column("pairwise_perceptual"),
        column("pairwise_mse"),
        column("clip_mean"),
        column("clip_variance"),
    ),
)
# Caching at N = 3 changes details, not what is drawn: the distance between two seeds' images must stay within a third.
CHANGES_BY = 1.33

PROMPTS = prompts_of([3, 27, 58, 9])  # a dress, a sneaker, a bag, an ankle boot
NUM_SEEDS = 12
METHODS = {"uncached": (1, 0), "N=3": (3, 0), "N=3, order 1": (3, 1), "N=10": (10, 0)}

pytestmark = pytest.mark.shows_images


@pytest.fixture(scope="module")
def perceptual(pytestconfig: pytest.Config) -> Perceptual:
    """Return LPIPS, or mini-features' distance where its weights are not found."""
    return load_distance(pytestconfig)


@pytest.fixture(scope="module")
def measured(prompted: Workload, perceptual: Perceptual) -> Callable[[Run, str], dict[str, float]]:
    """Return `measured(run, prompt)`, which samples and compares the seeds of a prompt once."""

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
    judge: Judge,
) -> None:
    interval, order = METHODS[method]
    uncached = prompted.uncached()
    run = uncached if interval == 1 else prompted.every(interval, order=order)
    metrics = measured(run, prompt)
    record(
        table=TABLE,
        key={"prompt": prompt, "interval": interval, "order": order},
        label=f"{prompt}, {method}",
        settings={
            **describe(prompted, run, uncached, range(NUM_SEEDS)),
            "perceptual": perceptual.name,
            "prompt": prompt,
            "interval": interval,
        },
        metrics=metrics,
    )
    if judge(prompted, when=interval == 3):
        ratio = metrics["pairwise_perceptual"] / measured(uncached, prompt)["pairwise_perceptual"]
        assert 1 / CHANGES_BY <= ratio <= CHANGES_BY

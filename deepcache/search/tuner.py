"""`tune`: a plan for a budget, found on some seeds and checked on other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Any

from tqdm import tqdm

from deepcache.errors import DeepCacheError
from deepcache.metrics import clip_score
from deepcache.metrics import perceptual as perceptual_metric
from deepcache.metrics.clip_score import Clip, load_clip
from deepcache.metrics.perceptual import Perceptual, load_perceptual
from deepcache.models.embedded import SIZE, is_embedded
from deepcache.plan import EVERY, IDLE, MOST_STEPS, Order, require_order, require_whole
from deepcache.sampling.conditions import Conditions, given_conditions
from deepcache.sampling.seeds import MOST_A_BATCH, MOST_SAMPLES, require_seeds
from deepcache.sampling.workload import Sampling, Workload, image_size_of
from deepcache.search.candidates import Space, lowest, space_of
from deepcache.search.trials import Trials
from deepcache.search.tuned import SPEEDUP, Budget, Tuned
from deepcache.unets.pipelines import require_sampler, unet_of

SEEDS = range(1_000_000, 1_000_036)  # far from the seeds that anybody evaluates on
_SEARCHED = 3  # a third of the seeds is for the search, the other seeds check what was found
_SHARES = (0.75, 0.6, 0.5, 0.4, 0.32, 0.25, 0.2)  # shares of the uncached MACs that plans are made for
_AROUND = (1.25, 1.0, 0.8, 0.6)  # for a speedup: shares of the MACs that the speedup leaves
_CONVERGED = Sampling("ddim", 250)  # stands for the solution of the differential equation


def tune(
    pipe: Any,
    *,
    speedup: float | None = None,
    psnr_db: float | None = None,
    perceptual: float | None = None,
    clip_loss: float | None = None,
    num_steps: int = 50,
    solvers: Sequence[str] | None = None,
    branches: Sequence[int] = (IDLE, 0, 1, 2),
    orders: Sequence[Order] = EVERY,
    seeds: Sequence[int] = SEEDS,
    prompts: Sequence[str] | None = None,
    conditions: Conditions | None = None,
    distance: Perceptual | None = None,
    clip: Clip | None = None,
    batch_size: int = 8,
    progress: bool = True,
    **arguments: Any,
) -> Tuned:
    """Find a plan for a budget on some seeds, and check it on other seeds (docs/plans.md says how).

        found = deepcache.tune(pipe, psnr_db=35, prompts=["a red sneaker", ...], num_steps=50)
        print(found)
        with deepcache.cached(pipe, found.plan):
            ...

    Args:
        pipe: a diffusers pipeline with its scheduler, whose call takes `num_inference_steps` and `generator`.
        speedup: budget: least ratio of uncached to cached MACs of a sample, above 1. The highest PSNR is then chosen.
        psnr_db: budget: least PSNR to the uncached samples in dB, of the median seed.
        perceptual: budget: largest perceptual distance to the uncached samples, of the median seed.
        clip_loss: budget: largest loss of CLIP score (0..100), mean over seeds.
        num_steps: steps of the pipeline's scheduler, at least 2.
        solvers: names of `deepcache.sampling.schedulers.SCHEDULERS` that are searched beside the pipeline's own, with
            `num_steps` and fewer. Images are then compared with 250 steps of DDIM, near which all solvers converge.
        branches, orders: those of the plans; branches that the U-Net does not have are left out.
        seeds: at least 12 different seeds; evaluate the plan on other seeds.
        prompts, conditions: what the samples show, as for `deepcache.calibrate`.
        distance: what measures `perceptual`; `load_perceptual()` if not given: LPIPS where its weights are found.
        clip: what measures `clip_loss`; mini-clip if not given, for the embedded models.
        batch_size: how many samples run together.
        progress: whether to show a progress bar.
        **arguments: passed on to the pipeline, e.g. `guidance_scale`.

    Raises:
        DeepCacheError: an argument is out of range, prompts are missing, or no plan keeps to the budget: the message
            names the nearest plan.
        UnsupportedUNetError: the pipeline cannot be cached.
    """
    limits = {"speedup": speedup, "psnr_db": psnr_db, "perceptual": perceptual, "clip_loss": clip_loss}
    given = {kind: limit for kind, limit in limits.items() if limit is not None}
    if len(given) != 1:
        raise DeepCacheError(f"expected one budget out of {', '.join(limits)}; got {', '.join(given) or 'none'}")
    budget = Budget(*given.popitem())
    require_whole("num_steps", num_steps, at_least=2, at_most=MOST_STEPS)
    require_whole("batch_size", batch_size, at_least=1, at_most=MOST_A_BATCH)
    require_whole("the number of seeds", len(seeds), at_least=0, at_most=MOST_SAMPLES)
    require_seeds(seeds)
    for order in orders:
        require_order(order)
    if len(set(seeds)) < 12 or len(set(seeds)) < len(seeds):
        raise DeepCacheError(f"expected at least 12 different seeds, got {len(seeds)}")
    require_sampler(pipe)
    workload = Workload(pipe, given_conditions(pipe, prompts, conditions), batch_size, arguments)
    space = space_of(workload, num_steps, branches=branches, orders=orders, solvers=solvers)
    shares = _shares(budget, space)
    distance = _distance(pipe, distance) if budget.kind == "perceptual" else None
    clip = _clip(workload, clip, seeds) if budget.kind == "clip_loss" else None
    target, count = _CONVERGED if solvers else space.own, len(seeds) // _SEARCHED
    with tqdm(desc="tune", unit="sample", disable=None if progress else True, leave=False) as bar:
        trials = Trials(budget, space, workload, target, seeds[:count], seeds[count:], bar, distance, clip)
        candidates = space.candidates(shares, trials.optimal)
        left = trials.left([*candidates, *trials.searched(candidates, shares)])
        return trials.tuned(left, trials.fastest(left) if budget.kind == SPEEDUP else trials.cheapest(left))


def _shares(budget: Budget, space: Space) -> tuple[float, ...]:
    """Return the shares of the uncached MACs that plans are made for; refuse a speedup that no plan reaches."""
    if budget.kind != SPEEDUP:
        return _SHARES
    branch = min(space.branches)
    order = min(map(lowest, space.orders))  # its cheapest plan has order + 1 full steps
    num_shallow = max(0, min(space.calls.values()) - order - 1)
    nearest = space.whole / ((order + 1) * space.full + num_shallow * space.shallow[branch])
    if budget.limit > nearest:
        raise DeepCacheError(
            f"no plan reaches a speedup of {budget.limit:g}; the nearest is {floor(100 * nearest) / 100}, at branch "
            f"{branch} with as few full steps as order {order} takes; ask for less, or take fewer steps"
        )
    return tuple(min(1.0, around / budget.limit) for around in _AROUND)


def _distance(pipe: Any, given: Perceptual | None) -> Perceptual:
    """Return the given perceptual distance, or the usual distance if it knows the pipeline's images."""
    found = given or load_perceptual(device=unet_of(pipe)[1].device)
    instead = "distance=load_perceptual(FILE) with torchvision's AlexNet weights"
    _require_knows(found.name, perceptual_metric.MINI, pipe, instead, is_given=given is not None)
    return found


def _clip(workload: Workload, given: Clip | None, seeds: Sequence[int]) -> Clip:
    """Return the given CLIP model, or mini-clip if it knows the images; refuse a workload without prompts to score."""
    if "prompt" not in workload.conditions(seeds[:1]):
        raise DeepCacheError("expected a pipeline with prompts for clip_loss; take psnr_db or perceptual instead")
    found = given or load_clip(device=unet_of(workload.pipe)[1].device)
    instead = "clip=load_clip(...), such as the paper's ViT-g-14"
    _require_knows(found.name, clip_score.MINI, workload.pipe, instead, is_given=given is not None)
    return found


def _require_knows(name: str, mini: str, pipe: Any, instead: str, *, is_given: bool) -> None:
    """Refuse a mini extractor that was not trained on the images: of other models, unless given, or of another size."""
    height, width = image_size_of(pipe)
    if name == mini and ((height, width) != SIZE or not (is_given or is_embedded(pipe))):
        raise DeepCacheError(
            f"expected images of {SIZE[0]} x {SIZE[1]} by an embedded model for {name}, got {height} x {width} by a "
            f"{type(pipe).__name__}; pass {instead}"
        )

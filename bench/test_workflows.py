"""Text to image, image to image and inpainting run with mini-sd, cached and uncached, and are scored by CLIP.

`--prompts FILE` holds a prompt a line, and the images are written to `--images-dir DIR`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from PIL import Image
from torch import Tensor

from bench.harness.columns import CLIP, LATENCY, PSNR, SPEEDUP
from bench.harness.laws import SAME_IMAGE_DB, Judge, assert_clip_score_is_kept
from bench.harness.measure import NOT_MEASURED, describe
from bench.harness.requirements import Needs
from bench.harness.timing import Timing, rounds_of, take_turns
from bench.harness.workload import Run, Workload
from deepcache.metrics.clip_score import clip_scores
from deepcache.metrics.fidelity import drift_of_errors, squared_errors
from deepcache.plan import Interval
from deepcache.results.layout import Layout
from deepcache.sampling.conditions import prompts_in, prompts_of

NEEDS = Needs(("prompted",))
TABLE = Layout(
    "workflows",
    title="Workflows: text to image, image to image, inpainting",
    look="Compare latency and PSNR with the uncached row of each workflow.",
    columns=(LATENCY, SPEEDUP, CLIP, PSNR),
)
INTERVAL = 3
STRENGTH = 0.7
NUM_PROMPTS = 20
WORKFLOWS: dict[str, Any] = {
    "text2img": lambda pipe: pipe,
    "img2img": lambda pipe: StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False),
    "inpainting": lambda pipe: StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False),
}
ORDERS = {"uncached": None, "N=3": 0, "N=3, order 1": 1}


@pytest.fixture(scope="session")
def prompts(pytestconfig: pytest.Config, prompted: Workload) -> list[str]:
    """Return the prompts of `--prompts`, or those of the model's first seeds."""
    path: Path | None = pytestconfig.getoption("prompts")
    return list(prompted.conditions(range(NUM_PROMPTS))["prompt"]) if path is None else prompts_in(path)


@pytest.fixture(scope="session")
def pictures(prompted: Workload, prompts: list[str]) -> Tensor:
    """Return the pictures that workflows start from: uncached samples of other prompts, (B, 3, 32, 32)."""
    seeds = range(1_000, 1_000 + len(prompts))
    images, _ = prompted.images(prompted.uncached(), seeds, description="pictures to start from")
    return images


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow(
    record: Callable[..., None],
    benchmark: Any,
    prompted: Workload,
    prompts: list[str],
    pictures: Tensor,
    name: str,
    method: str,
    pytestconfig: pytest.Config,
    judge: Judge,
) -> None:
    uncached, seeds, order = prompted.uncached(), range(len(prompts)), ORDERS[method]
    rounds: int = pytestconfig.getoption("rounds")
    prompted.images(uncached, range(1), progress=False, num_inference_steps=2)  # its own scheduler again, and warm
    workflow = replace(prompted, pipe=WORKFLOWS[name](prompted.pipe))
    run = uncached if order is None else replace(uncached, plan=Interval(INTERVAL, prompted.protocol.branch, order))

    timing = Timing()
    found: dict[Run, Tensor] = {}

    def images_of(one: Run, seconds: list[float]) -> None:
        started = time.perf_counter()
        found[one], _ = workflow.images(
            one,
            seeds,
            conditions=lambda some: _conditions(name, prompts, pictures, some),
            description=f"{name}, {method}",
        )
        seconds.append(time.perf_counter() - started)

    benchmark.group = f"workflows, {name}"
    beside = None if order is None else lambda: images_of(uncached, timing.uncached_s)
    take_turns(benchmark, rounds, lambda: images_of(run, timing.cached_s), beside)
    images, before = found[run], found[uncached]
    metrics: dict[str, float] = {}
    if benchmark.enabled:
        metrics |= {"latency_s": statistics.median(timing.cached_s), "speedup": timing.speedup}
    if prompted.clip is not None:
        metrics["clip_score"] = statistics.fmean(clip_scores(prompted.clip, images, prompts).tolist())
        if order is not None:
            metrics |= drift_of_errors(squared_errors(images, before))
    timed = rounds_of(rounds, f"{len(prompts)} images") if benchmark.enabled else NOT_MEASURED
    extra: dict[str, str | float] = {"workflow": name, "method": method, "timing": timed}
    extra |= {"interval": 1 if order is None else INTERVAL} | ({} if name == "text2img" else {"strength": STRENGTH})
    settings = {**describe(workflow, run, uncached, seeds), **extra}
    record(
        table=TABLE,
        key={"workflow": name, "method": "uncached" if order is None else "uniform", "order": order or 0},
        label=f"{name}, {method}",
        settings=settings,
        metrics=metrics,
    )
    _save(images, prompts, pytestconfig.getoption("images_dir"), f"{name}-{method.replace(', ', '-').replace(' ', '')}")

    assert images.shape == pictures.shape
    if judge(prompted, when=order is not None and prompts == prompts_of(range(NUM_PROMPTS))):
        assert not torch.equal(images, before)
        assert metrics["psnr_db"] >= SAME_IMAGE_DB
        assert_clip_score_is_kept(metrics["clip_score"], clip_scores(prompted.clip, before, prompts).tolist())
    if name == "inpainting" and prompted.is_trained:
        kept = images[:, :, :, : images.shape[3] // 4] - pictures[:, :, :, : images.shape[3] // 4]
        assert kept.abs().mean() < (images - pictures).abs().mean() or torch.equal(images, pictures)


def _conditions(name: str, prompts: list[str], pictures: Tensor, seeds: Any) -> dict[str, Any]:
    """Return the conditions of some seeds; inpainting fills the right half of a picture."""
    found: dict[str, Any] = {"prompt": [prompts[seed] for seed in seeds]}
    if name != "text2img":
        found |= {"image": pictures[list(seeds)], "strength": STRENGTH}
    if name == "inpainting":
        mask = torch.zeros(len(seeds), 1, *pictures.shape[2:])
        mask[..., pictures.shape[3] // 2 :] = 1
        found |= {"mask_image": mask, "height": pictures.shape[2], "width": pictures.shape[3]}
    return found


def _save(images: Tensor, prompts: list[str], folder: Path | None, name: str) -> None:
    if folder is None:
        return
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        words = "-".join("".join(c if c.isalnum() else " " for c in prompt).split())[:60]
        pixels = (255 * image.permute(1, 2, 0)).round().byte().numpy()
        Image.fromarray(pixels).save(folder / name / f"{number:03d}-{words}.png")

"""`tune`: from a budget to a plan's file."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcache.errors import DeepCacheError
from deepcache.sampling.limits import END_OF_SEEDS, MOST_A_BATCH, MOST_SAMPLES, whole

if TYPE_CHECKING:
    from deepcache.metrics.clip_score import Clip
    from deepcache.metrics.perceptual import Perceptual
    from deepcache.sampling.settings import Settings
    from deepcache.search.tuned import Tuned

BUDGETS = {
    "speedup": "uncached over cached MACs of a sample, at least; the images are then kept as near as can be",
    "psnr_db": "PSNR to the uncached samples, at least; of the median seed, in dB",
    "perceptual": "perceptual distance to them, at most; of the median seed",
    "clip_loss": "loss of CLIP score, at most; mean over seeds",
}


def add(commands: Any) -> None:
    command = commands.add_parser("tune", help="from a budget, of speed or of fidelity, to a plan")
    add = command.add_argument
    add("--model", required=True, help="a known name, a hub id, a diffusers folder, or a checkpoint")
    budgets = command.add_mutually_exclusive_group(required=True)
    for name, text in BUDGETS.items():
        budgets.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=f"budget: {text}")
    add("--out", type=Path, default=Path("plan.json"), metavar="FILE", help="the plan (default plan.json)")
    add("--plot", type=Path, metavar="FILE", help="the Pareto front, a PNG (default: --out's name with .png)")
    add("--scheduler", help="as this and the next two are not given, the model's protocol counts")
    add("--num-steps", type=int, help="of the scheduler")
    add("--guidance-scale", type=float, help="1 is no guidance")
    add("--solvers", type=_names, metavar="A,B", help="schedulers to search as well, with --num-steps and fewer")
    add("--branches", type=_numbers, default=[0, 1, 2], metavar="B,C", help="to search (default 0,1,2)")
    add("--orders", type=_numbers, default=[0, 1, 2], metavar="K,L", help="to search (default 0,1,2)")
    add("--prompts", type=Path, metavar="FILE", help="a prompt a line, PartiPrompts' .tsv, or COCO's captions .json")
    add("--lpips-weights", type=Path, metavar="FILE", help="with --perceptual: torchvision's AlexNet (default: cache)")
    add(
        "--clip", metavar="NAME", help="with --clip-loss: mini-clip, or the paper's ViT-g-14 (default: as the model is)"
    )
    add("--clip-weights", type=Path, metavar="FILE", help="its weights (default: the hub's cache)")
    add(
        "--first-seed",
        type=whole(at_least=0, at_most=END_OF_SEEDS - 1),
        default=1_000_000,
        help="of those tuned on (default 1000000); evaluate on others",
    )
    add(
        "--num-seeds",
        type=whole(at_most=MOST_SAMPLES),
        default=36,
        help="a third searches, the others check (default 36)",
    )
    add("--batch-size", type=whole(at_most=MOST_A_BATCH), default=8, help="samples at once (default 8)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    command.set_defaults(run=run)


def run(options: Namespace) -> str:
    from deepcache import models
    from deepcache.models.loading import require_device, usual_device
    from deepcache.sampling.prompt_files import prompts_in
    from deepcache.sampling.schedulers import scheduler
    from deepcache.sampling.settings import settings_of
    from deepcache.search.plot import plot, require_matplotlib
    from deepcache.search.tuner import tune

    require_matplotlib()
    picture = options.plot or options.out.with_suffix(".png")
    for file in (options.out, picture):
        if not file.parent.is_dir():
            raise DeepCacheError(
                f"expected a folder to write {file.name} to, {file.parent} is not there; make it first"
            )
    options.device = options.device or usual_device()
    require_device(options.device)
    pipe = models.load(options.model, device=options.device)
    asked = {name: getattr(options, name) for name in ("scheduler", "num_steps", "guidance_scale")}
    settings = settings_of(options.model, pipe, **asked)
    pipe.scheduler = scheduler(settings.scheduler, pipe.scheduler.config)
    scale: dict[str, Any] = {} if settings.guidance_scale is None else {"guidance_scale": settings.guidance_scale}
    found = tune(
        pipe,
        speedup=options.speedup,
        psnr_db=options.psnr_db,
        perceptual=options.perceptual,
        clip_loss=options.clip_loss,
        num_steps=settings.num_steps,
        solvers=options.solvers,
        branches=options.branches,
        orders=options.orders,
        seeds=range(options.first_seed, options.first_seed + options.num_seeds),
        prompts=None if options.prompts is None else prompts_in(options.prompts),
        distance=_distance(options) if options.perceptual is not None else None,
        clip=_clip(options) if options.clip_loss is not None else None,
        batch_size=options.batch_size,
        **scale,
    )
    print(found)  # before anything that may fail
    found.save(options.out)
    plot(found, picture)
    return f"\nwritten: {options.out}, {picture}; to sample with it:\n{_command(options, settings, found)}"


def _distance(options: Namespace) -> Perceptual:
    from deepcache.metrics.perceptual import load_perceptual

    return load_perceptual(options.lpips_weights, device=options.device)


def _clip(options: Namespace) -> Clip:
    from deepcache.metrics.clip_score import MINI, PAPER, load_named_clip
    from deepcache.models.registry import EMBEDDED

    name = options.clip or (MINI if options.model in EMBEDDED else PAPER[0])
    return load_named_clip(name, options.clip_weights, options.device)


def _command(options: Namespace, settings: Settings, found: Tuned) -> str:
    words = ["python", "-m", "deepcache", "sample", "--model", options.model, "--plan", str(options.out)]
    words += ["--scheduler", found.scheduler or settings.scheduler, "--num-steps", str(found.num_steps)]
    if settings.guidance_scale is not None:
        words += ["--guidance-scale", f"{settings.guidance_scale:g}"]
    if options.prompts is not None:
        words += ["--prompts", str(options.prompts)]
    return shlex.join([*words, "--seeds", "0:100", "--out", "samples"])


def _names(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]

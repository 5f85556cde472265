"""`tune`: finds a plan for a budget, and writes the plan and the picture of its Pareto front."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

from deepcache.commands.options import MODEL, add_device, add_prompts, add_solver, new, order_in
from deepcache.errors import DeepCacheError
from deepcache.plan import EVERY, Order
from deepcache.sampling.seeds import END_OF_SEEDS, MOST_A_BATCH, MOST_SAMPLES, whole

BUDGETS = {
    "speedup": "least ratio of uncached to cached MACs of a sample; the images then stay as near as possible",
    "psnr_db": "least PSNR to the uncached samples, of the median seed, in dB",
    "perceptual": "largest perceptual distance to the uncached samples, of the median seed",
    "clip_loss": "largest loss of CLIP score, mean over seeds",
}


def add(commands: Any) -> None:
    text, steps = "find a plan for a budget of speed or of fidelity", "--num-steps 25 --speedup 2"
    own = f"--model ./my-pipeline --prompts prompts.txt --scheduler dpm-solver++ {steps} --guidance-scale 5"
    command = new(commands, "tune", text, "--model mini-ldm --psnr-db 40", own)
    add = command.add_argument
    add("--model", required=True, help=MODEL)
    budgets = command.add_mutually_exclusive_group(required=True)
    for name, text in BUDGETS.items():
        budgets.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=f"budget: {text}")
    add("--out", type=Path, default=Path("plan.json"), metavar="FILE", help="file of the plan (default plan.json)")
    add("--plot", type=Path, metavar="FILE", help="PNG of the Pareto front (default: --out's name with .png)")
    add_solver(command)
    add("--solvers", type=_names, metavar="A,B", help="more schedulers to search, with --num-steps and fewer")
    add("--branches", type=_numbers, default=[-1, 0, 1, 2], metavar="B,C", help="branches to search, -1: no stage runs")
    add("--orders", type=_orders, default=list(EVERY), metavar="K,L", help="orders to search (default auto,0,1,2)")
    add_prompts(command)
    add("--lpips-weights", type=Path, metavar="FILE", help="with --perceptual: AlexNet's file (default: the cache)")
    add("--clip", metavar="NAME", help="with --clip-loss: mini-clip (default for embedded models), else ViT-g-14")
    add("--clip-weights", type=Path, metavar="FILE", help="weights of --clip (default: the hub's cache)")
    first, seeds = whole(at_least=0, at_most=END_OF_SEEDS - 1), whole(at_most=MOST_SAMPLES)
    add("--first-seed", type=first, default=1_000_000, help="first seed (default 1000000); evaluate on other seeds")
    add("--num-seeds", type=seeds, default=36, help="the search takes a third, the check takes the rest (default 36)")
    add("--batch-size", type=whole(at_most=MOST_A_BATCH), default=8, help="samples at once (default 8)")
    add("--json", action="store_true", help="print what was found as JSON, the plan among it")
    add_device(command)
    command.set_defaults(run=run, has_bar=True)


def run(options: Namespace) -> str:
    from deepcache import models
    from deepcache.metrics.clip_score import MINI, PAPER, load_clip
    from deepcache.metrics.perceptual import load_perceptual
    from deepcache.models.loading import require_device, usual_device
    from deepcache.models.registry import EMBEDDED
    from deepcache.sampling.conditions import conditions_of, prompts_in
    from deepcache.sampling.workload import by_protocol
    from deepcache.search.tuned import plot
    from deepcache.search.tuner import tune

    picture = options.plot or options.out.with_suffix(".png")
    if picture == options.out:
        raise DeepCacheError(f"expected different files for the plan and its picture, got {picture}; say --plot FILE")
    for file in (options.out, picture):
        if not file.parent.is_dir():
            raise DeepCacheError(f"expected a folder for {file.name}, {file.parent} is not there; make it first")
    device = options.device or usual_device()
    require_device(device)
    pipe = models.load(options.model, device=device)
    conditions = conditions_of(pipe, prompts=None if options.prompts is None else prompts_in(options.prompts))
    asked = {name: getattr(options, name) for name in ("scheduler", "num_steps", "guidance_scale", "batch_size")}
    workload, sampling = by_protocol(options.model, pipe, conditions, **asked)
    named = options.clip or (MINI if options.model in EMBEDDED else PAPER[0])
    distance = None if options.perceptual is None else load_perceptual(options.lpips_weights, device=device)
    clip = None if options.clip_loss is None else load_clip(named, checkpoint=options.clip_weights, device=device)
    with workload.under(sampling):
        found = tune(
            pipe,
            **{name: getattr(options, name) for name in (*BUDGETS, "solvers", "branches", "orders")},
            num_steps=sampling.num_steps,
            seeds=range(options.first_seed, options.first_seed + options.num_seeds),
            conditions=conditions,
            distance=distance,
            clip=clip,
            batch_size=workload.batch_size,
            **workload.arguments,
        )
    if not options.json:
        print(found)  # printed before anything can fail
    found.save(options.out)
    plot(found, picture)
    if options.json:
        return json.dumps(found.for_machines(), indent=2)
    words = ["python", "-m", "deepcache", "sample", "--model", options.model, "--plan", str(options.out)]
    words += ["--scheduler", found.scheduler or str(sampling.scheduler), "--num-steps", str(found.num_steps)]
    if workload.guidance_scale is not None:
        words += ["--guidance-scale", f"{workload.guidance_scale:g}"]
    if options.prompts is not None:
        words += ["--prompts", str(options.prompts)]
    command = shlex.join([*words, "--seeds", "0:100", "--out", "samples"])
    return f"\nwritten: {options.out}, {picture}; to sample with it:\n{command}"


def _names(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _orders(text: str) -> list[Order]:
    return [order_in(word) for word in _names(text)]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]

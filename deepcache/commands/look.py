"""`try`: a first look at a model of one's own, as a page of images side by side with what each of them costs."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcache.commands.options import MODEL, add_device, add_prompts, add_solver, new
from deepcache.errors import DeepCacheError
from deepcache.plan import MOST_STEPS
from deepcache.sampling.seeds import END_OF_SEEDS, MOST_A_BATCH, whole

if TYPE_CHECKING:
    from deepcache.sampling.conditions import Conditions
    from deepcache.sampling.workload import Sampling, Workload

MOST_IMAGES, MOST_BRANCHES = 64, 1000


def add(commands: Any) -> None:
    text = "look at a model: images uncached, by plans and by fewer steps, side by side on one page"
    own = "./my-pipeline --prompts prompts.txt --dtype fp16 --device cuda"
    command = new(commands, "try", text, "mini-sd", own)
    add = command.add_argument
    add("model", help=MODEL)
    add_prompts(command)
    add("--num-images", type=whole(at_most=MOST_IMAGES), default=4, help="images to sample in each way (default 4)")
    whole_steps, branches = whole(at_least=2, at_most=MOST_STEPS), whole(at_least=0, at_most=MOST_BRANCHES)
    add("--interval", type=whole_steps, default=3, help="N: every N-th step is full, which sets the cost (default 3)")
    add("--branch", type=branches, help="where the U-Net is cut; 0 is the outermost (default: the paper's, else 0)")
    add_solver(command)
    add("--first-seed", type=whole(at_least=0, at_most=END_OF_SEEDS - MOST_IMAGES), default=0, help="default 0")
    add("--batch-size", type=whole(at_most=MOST_A_BATCH), help="images at once (default 1; embedded models: all)")
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="number format (default fp32)")
    add_device(command)
    add("--out", type=Path, default=Path("try.html"), metavar="FILE", help="the page to write (default try.html)")
    add("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=run, has_bar=True)


def run(options: Namespace) -> str:
    from PIL import Image

    from deepcache import models
    from deepcache.files import write_text
    from deepcache.metrics.images import as_bytes
    from deepcache.metrics.perceptual import load_perceptual
    from deepcache.models.loading import require_device, usual_device
    from deepcache.models.registry import MODELS
    from deepcache.results.look import page
    from deepcache.sampling.conditions import conditions_of, prompts_in
    from deepcache.sampling.workload import DTYPES
    from deepcache.search.looks import advice, best, known_distance, looks, ways

    device = options.device or usual_device()
    require_device(device)
    prompts = None if options.prompts is None else prompts_in(options.prompts)
    pipe = models.load(options.model, dtype=DTYPES[options.dtype], device=device)
    workload, sampling = _asked(options, pipe, conditions_of(pipe, prompts=prompts))
    seeds = range(options.first_seed, options.first_seed + options.num_images)
    distance = known_distance(workload, load_perceptual(device=device))
    branch = options.branch
    if branch is None:
        branch = MODELS[options.model].protocol.branch if options.model in MODELS else 0
    found = list(looks(workload, ways(workload, sampling, options.interval, branch), seeds, distance))
    facts = {
        "solver": f"{sampling.scheduler or type(pipe.scheduler).__name__}, {sampling.num_steps} steps",
        "guidance": "the pipeline's own" if workload.guidance_scale is None else f"{workload.guidance_scale:g}",
        "device": f"{device}, {options.dtype}",
        "perceptual distance": "not measured" if distance is None else distance.name,
    }
    names = ("macs", "share", "latency_s", "psnr_db", "psnr_median_db", "perceptual")
    figures = [
        {"name": look.way.name, "how": look.way.how, **{name: getattr(look, name) for name in names}} for look in found
    ]
    pictures = [[Image.fromarray(each.permute(1, 2, 0).numpy()) for each in as_bytes(look.images)] for look in found]
    tune = ["python", "-m", "deepcache", "tune", "--model", options.model, "--psnr-db", "40"]
    if prompts is not None:
        tune += ["--prompts", str(options.prompts)]
    write_text(
        options.out,
        page(
            options.model,
            [{**each, "images": images} for each, images in zip(figures, pictures, strict=True)],
            [_title(workload.conditions([seed]), seed) for seed in seeds],
            best=best(found).way.name,
            advice=advice(found),
            facts=facts.items(),
            made_by=options.made_by,
            next_command=shlex.join(tune),
        ),
    )
    if options.json:
        return json.dumps({"model": options.model, **facts, "advice": advice(found), "ways": figures}, indent=2)
    lines = [f"{'':<14}{'of the MACs':>12}{'s an image':>12}{'PSNR (dB)':>12}"]
    for look in found:
        near = "-" if look is found[0] else f"{look.psnr_median_db:.1f}"
        lines.append(f"{look.way.name:<14}{look.share:>12.0%}{look.latency_s:>12.2f}{near:>12}")
    return "\n".join([*lines, "", advice(found), f"written: {options.out}"])


def _asked(options: Namespace, pipe: Any, conditions: Conditions) -> tuple[Workload, Sampling]:
    """Return what is sampled: as asked, else by the protocol of a known model, else as the pipeline itself says."""
    from deepcache.models.registry import EMBEDDED, MODELS
    from deepcache.sampling.workload import Sampling, Workload, by_protocol

    size = options.batch_size or (options.num_images if options.model in EMBEDDED else 1)
    asked = {name: getattr(options, name) for name in ("scheduler", "num_steps", "guidance_scale")}
    if options.model in MODELS:
        return by_protocol(options.model, pipe, conditions, batch_size=size, **asked)
    own = getattr(signature(pipe.__call__).parameters.get("num_inference_steps"), "default", None)
    num_steps = options.num_steps or own
    if num_steps is None:
        raise DeepCacheError(f"expected --num-steps, since a {type(pipe).__name__} has no number of steps by default")
    arguments = {} if options.guidance_scale is None else {"guidance_scale": options.guidance_scale}
    workload = Workload(pipe, conditions, size, arguments, options.model)
    return workload, Sampling(options.scheduler, num_steps)


def _title(arguments: dict[str, Any], seed: int) -> str:
    """Return what a seed's image shows: its prompt or its class."""
    asked = arguments.get("prompt") or [f"class {label}" for label in arguments.get("class_labels", ())]
    return f"{asked[0]} (seed {seed})" if asked else f"seed {seed}"

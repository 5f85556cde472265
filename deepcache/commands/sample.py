"""`sample`: a model's samples into a store, by one process or by many."""

from __future__ import annotations

from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deepcache.errors import DeepCacheError
from deepcache.sampling.limits import MOST_A_BATCH, MOST_A_SHARD, MOST_THREADS, seeds_of, whole

if TYPE_CHECKING:
    from deepcache.plan import CachePlan
    from deepcache.sampling.conditions import Captions, Labels, Prompts, Unconditional
    from deepcache.sampling.settings import Settings
    from deepcache.sampling.store import Store
    from deepcache.sampling.workers import Worker

AUTO = "auto"
PLANS = (
    "uncached (default); uniform,interval=3,branch=0,order=1; quadratic,num_full=10,center=15,power=1.4; "
    "or a plan's JSON file"
)
BATCHES = "samples at once; auto (default): as the store has it, else as the protocol; halved if need be"


def add(commands: Any) -> None:
    command = commands.add_parser("sample", help="samples of a model into a store: alone, or one of many processes")
    add = command.add_argument
    add("--model", required=True, help="a known name, a hub id, a diffusers folder, or a checkpoint")
    add("--plan", default="uncached", help=PLANS)
    add("--seeds", type=seeds_of, required=True, metavar="A:B", help="A up to, without, B: one a sample")
    add("--out", type=Path, required=True, metavar="STORE", help="folder to write to, or to go on with")
    add("--scheduler", help="as this and the next two are not given, the model's protocol counts")
    add("--num-steps", type=_steps, help="of the scheduler")
    add("--guidance-scale", type=float, help="1 is no guidance")
    add("--classes", choices=("balanced", "random"), help="seed modulo number of classes (default), or drawn by seed")
    add("--prompts", type=Path, metavar="FILE", help="a prompt a line, PartiPrompts' .tsv, or COCO's captions .json")
    add("--weights", choices=("trained", "random"), default="trained", help="random: the architecture, for its speed")
    add("--batch-size", type=_batch_size, default=AUTO, help=BATCHES)
    add(
        "--shard-size", type=whole(at_most=MOST_A_SHARD), help="samples a file (default: as the store has it, else 250)"
    )
    add("--device", help="cpu, cuda (each worker its own), cuda:1, ... (default: cuda where there is one)")
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the networks (default fp32)")
    add(
        "--threads",
        type=whole(at_most=MOST_THREADS),
        default=1,
        help="of each process on the CPU (default 1, for equal files)",
    )
    add("--worker", metavar="RANK/COUNT", help="default: as torchrun, accelerate launch or a Slurm array say")
    command.set_defaults(run=run)


class Job(NamedTuple):
    """What is to be sampled, and by which pipeline."""

    pipe: Any
    settings: Settings
    plan: CachePlan | None
    conditions: Unconditional | Labels | Captions | Prompts
    usual_batch_size: int


def run(options: Namespace) -> str:
    from deepcache.sampling.workers import worker

    own = worker(options.worker)
    try:
        job = _job(options, own)
        store = _store(options, job)
        _fill(options, job, store, own)
    except KeyboardInterrupt as error:
        raise DeepCacheError("stopped; the same command goes on after the last finished file") from error
    return _summary(options, store, own)


def _job(options: Namespace, own: Worker) -> Job:
    from deepcache.models.registry import MODELS
    from deepcache.plan import parse_plan
    from deepcache.sampling.manifest import SHARD_SIZE
    from deepcache.sampling.schedulers import num_calls, scheduler
    from deepcache.sampling.settings import settings_of
    from deepcache.unets.registry import cut

    pipe = _pipeline(options, _device(options, own))
    asked = {name: getattr(options, name) for name in ("scheduler", "num_steps", "guidance_scale")}
    settings = settings_of(options.model, pipe, **asked)
    plan = parse_plan(options.plan, num_calls(settings.scheduler, pipe.scheduler.config, settings.num_steps))
    if plan is not None:
        cut(pipe.unet, plan.branch)  # refuses one that is not there, before there is a store
    pipe.scheduler = scheduler(settings.scheduler, pipe.scheduler.config)
    known = MODELS.get(options.model)
    usual_batch_size = SHARD_SIZE if known is None else known.protocol.batch_size
    return Job(pipe, settings, plan, _conditions(options, pipe), usual_batch_size)


def _pipeline(options: Namespace, device: Any) -> Any:
    from deepcache import models
    from deepcache.sampling.identity import DTYPES

    return models.load(options.model, weights=options.weights, dtype=DTYPES[options.dtype], device=device)


def _device(options: Namespace, own: Worker) -> Any:
    """This worker's; on the CPU, with the threads that all workers have, since their number rounds sums otherwise."""
    import torch

    from deepcache.models.loading import require_device, usual_device

    name, count = options.device or usual_device(), torch.cuda.device_count()
    if name == "cuda" and own.local_rank >= count:
        raise DeepCacheError(f"expected a GPU for {own}, number {own.local_rank} of {count} here; take --device cpu")
    require_device(name)
    found = torch.device("cuda", own.local_rank) if name == "cuda" else torch.device(name)
    if found.type == "cuda":
        torch.cuda.set_device(found)
    if found.type == "cpu":
        torch.set_num_threads(options.threads)
    return found


def _conditions(options: Namespace, pipe: Any) -> Unconditional | Labels | Captions | Prompts:
    from deepcache.sampling.conditions import conditions_of
    from deepcache.sampling.prompt_files import prompts_in

    prompts = None if options.prompts is None else prompts_in(options.prompts)
    return conditions_of(pipe, classes=options.classes, prompts=prompts)


def _store(options: Namespace, job: Job) -> Store:
    from deepcache.sampling.identity import manifest_of
    from deepcache.sampling.manifest import SHARD_SIZE
    from deepcache.sampling.store import Store

    usual = {"shard_size": SHARD_SIZE, "batch_size": job.usual_batch_size}
    asked = {name: getattr(options, name) for name in usual if getattr(options, name) not in (None, AUTO)}
    layout = {**usual, **asked}
    manifest = manifest_of(
        job.pipe,
        job.settings,
        job.plan,
        job.conditions.rule,
        model=options.model,
        weights=options.weights,
        made_with={"threads": options.threads},
        batch_size=layout["batch_size"],
        shard_size=layout["shard_size"],
    )
    return Store.create(options.out, manifest, follows=usual.keys() - asked.keys())


def _fill(options: Namespace, job: Job, store: Store, own: Worker) -> None:
    from deepcache.cache.caching import cached
    from deepcache.sampling.batches import Batches
    from deepcache.sampling.progress import Progress

    total = sum(map(len, store.work(options.seeds, own)))
    caching = nullcontext() if job.plan is None else cached(job.pipe, job.plan)
    with caching, Progress(total, str(own), own.local_rank) as progress:
        batches = Batches(
            job.pipe,
            job.conditions,
            job.settings.arguments,
            store.manifest.batch_size,
            is_halved=options.batch_size == AUTO,
            say=progress.say,
            advance=progress.advance,
        )
        store.fill(options.seeds, batches, own)


def _summary(options: Namespace, store: Store, own: Worker) -> str:
    if own.rank:
        return f"{own} is done"
    there = len(options.seeds) - len(store.missing(options.seeds))
    rest = "" if there == len(options.seeds) else "; other workers may still be at it"
    return f"{store.folder}: {there} of the {len(options.seeds)} samples are there{rest}"


def _steps(text: str) -> int:
    from deepcache.plan import MOST_STEPS

    return whole(at_most=MOST_STEPS)(text)


def _batch_size(text: str) -> int | str:
    return text if text == AUTO else whole(at_most=MOST_A_BATCH)(text)

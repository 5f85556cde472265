"""`sample`: one process, or one of many, puts a model's samples into a store."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepcache.commands.options import MODEL, add_prompts, add_solver, new
from deepcache.errors import DeepCacheError
from deepcache.plan import GRAMMAR, parse_plan
from deepcache.sampling.seeds import MOST_A_BATCH, MOST_A_SHARD, MOST_THREADS, Worker, seeds_of, whole, worker

AUTO = "auto"
BATCHES = "samples at once; auto (default): the store's own, else the protocol's number, halved if memory is short"


def add(commands: Any) -> None:
    text = "samples of a model into a store: alone, or as one of many processes"
    command = new(commands, "sample", text, "--model mini-ldm --plan uniform,interval=3 --seeds 0:100 --out samples")
    add = command.add_argument
    add("--model", required=True, help=MODEL)
    add("--plan", default="uncached", help=f"{GRAMMAR} (default: uncached)")
    add("--seeds", type=seeds_of, required=True, metavar="A:B", help="the seeds A, ..., B - 1, one a sample")
    add("--out", type=Path, required=True, metavar="STORE", help="folder to write to, or to continue")
    add_solver(command)
    add("--classes", choices=("balanced", "random"), help="seed modulo number of classes (default), or seed's hash")
    add_prompts(command)
    add("--weights", choices=("trained", "random"), default="trained", help="random: noise, to measure speed alone")
    add("--batch-size", type=_batch_size, default=AUTO, help=BATCHES)
    add("--shard-size", type=whole(at_most=MOST_A_SHARD), help="samples a file (default: the store's own, else 250)")
    add("--device", help="cpu, cuda (a GPU for each worker), cuda:1, ... (default: cuda where there is one)")
    formats = ("fp32", "fp16", "bf16")
    add("--dtype", choices=formats, default="fp32", help="number format of the networks (default fp32)")
    threads = "threads of each process on the CPU (default 1, for equal files)"
    add("--threads", type=whole(at_most=MOST_THREADS), default=1, help=threads)
    add("--worker", metavar="RANK/COUNT", help="this process's share (default: as torchrun, accelerate, Slurm tell)")
    command.set_defaults(run=run, has_bar=True)


def run(options: Namespace) -> str:
    own = worker(options.worker)
    try:
        return _filled(options, own)
    except KeyboardInterrupt as error:
        raise DeepCacheError("stopped; the same command goes on after the last finished file") from error


def _filled(options: Namespace, own: Worker) -> str:
    """Sample this worker's share into the store, and say how much of it is there."""
    from deepcache import models
    from deepcache.sampling.conditions import conditions_of, prompts_in
    from deepcache.sampling.filling import fill
    from deepcache.sampling.manifest import SHARD_SIZE
    from deepcache.sampling.store import Store
    from deepcache.sampling.workload import DTYPES, by_protocol
    from deepcache.unets.registry import cut

    device = _device(options, own)
    pipe = models.load(options.model, weights=options.weights, dtype=DTYPES[options.dtype], device=device)
    prompts = None if options.prompts is None else prompts_in(options.prompts)
    conditions = conditions_of(pipe, classes=options.classes, prompts=prompts)
    size = None if options.batch_size == AUTO else options.batch_size
    asked = {name: getattr(options, name) for name in ("scheduler", "num_steps", "guidance_scale", "weights")}
    workload, sampling = by_protocol(options.model, pipe, conditions, batch_size=size, is_halved=size is None, **asked)
    sampling = replace(sampling, plan=parse_plan(options.plan, workload.num_calls(sampling)))
    if sampling.plan is not None:
        cut(pipe.unet, sampling.plan.branch)  # refuses a branch that is not there, before there is a store
    manifest = workload.manifest(sampling, shard_size=options.shard_size or SHARD_SIZE)
    given = {"batch_size": size, "shard_size": options.shard_size}
    store = Store.create(options.out, manifest, follows=[name for name, value in given.items() if value is None])
    fill(store, workload, sampling, options.seeds, worker=own, name=str(own))
    if own.rank:
        return f"{own} is done"
    there = len(options.seeds) - len(store.missing(options.seeds))
    rest = "" if there == len(options.seeds) else "; other workers may still be at it"
    return f"{store.folder}: {there} of the {len(options.seeds)} samples are there{rest}"


def _device(options: Namespace, own: Worker) -> Any:
    """Return this worker's device; on the CPU set the number of threads, which decides how sums are rounded."""
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


def _batch_size(text: str) -> int | str:
    return text if text == AUTO else whole(at_most=MOST_A_BATCH)(text)

"""`explain`: what a plan costs and can gain on a pipeline."""

from __future__ import annotations

from argparse import Namespace
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("explain", help="what a plan costs and can gain on a pipeline, without weights")
    command.add_argument(
        "--model", required=True, help="a known name, a hub id, a diffusers folder, a checkpoint, or a config.json"
    )
    command.add_argument("--num-steps", type=int, default=50, help="U-Net calls of a generation (default 50)")
    command.add_argument("--interval", type=int, required=True, help="N: steps 0, N, 2N, ... are full")
    command.add_argument("--branch", type=int, default=0, help="the skips 0..BRANCH stay live (default 0)")
    command.add_argument("--order", type=int, help="of the prediction: 0 (the paper's reuse), 1 (default) or 2")
    command.add_argument("--last-step-full", action="store_true", help="the last step is full, too")
    command.set_defaults(run=run)


def run(options: Namespace) -> str:
    from deepcache.costs.explain import explain
    from deepcache.models.architectures import skeleton
    from deepcache.plan import Interval

    order = {} if options.order is None else {"order": options.order}
    plan = Interval(options.interval, options.branch, last_step_full=options.last_step_full, **order)
    pipeline, context_tokens = skeleton(options.model)
    return str(explain(pipeline, plan, options.num_steps, name=options.model, context_tokens=context_tokens))

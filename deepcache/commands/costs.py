"""The commands `macs` and `explain`: what steps and plans cost, without weights."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from typing import Any

from deepcache.commands.options import new, order_in
from deepcache.plan import MOST_STEPS, Interval, require_whole


def add(commands: Any) -> None:
    """Add both commands to the command line."""
    text = "what a plan costs and can gain on a pipeline, without weights"
    explain = new(commands, "explain", text, "--model sdxl --interval 3")
    _add_model(explain)
    explain.add_argument("--interval", type=int, required=True, help="N: steps 0, N, 2N, ... are full")
    explain.add_argument("--branch", type=int, default=0, help="the skips 0..BRANCH stay live, none at -1 (default 0)")
    explain.add_argument("--order", type=order_in, help="order of the prediction: auto (default), 0 (reuse), 1 or 2")
    explain.add_argument("--last-step-full", action="store_true", help="the last step is full, too")
    explain.add_argument("--json", action="store_true", help="print the figures as JSON, for machines")
    explain.set_defaults(run=run_explain)

    text = "multiply-accumulates of full and shallow steps, without weights"
    macs = new(commands, "macs", text, "--model ldm-4-g --branch 0 --interval 5 --num-steps 250")
    _add_model(macs)
    macs.add_argument("--branch", type=int, help="the skips 0..BRANCH stay live, none at -1; all branches if not given")
    macs.add_argument("--interval", type=int, help="N: also show the mean over the steps of a uniform plan")
    macs.add_argument("--context-tokens", type=int, help="length of the prompt (default: the model's own, else 77)")
    macs.add_argument("--layer-wise", action="store_true", help="show every stage")
    macs.add_argument("--json", action="store_true", help="print whole numbers of MACs as JSON, for machines")
    macs.set_defaults(run=run_macs)


def _add_model(command: ArgumentParser) -> None:
    command.add_argument(
        "--model", required=True, help="a known name, a hub id, a diffusers folder, a checkpoint, or a config.json"
    )
    command.add_argument("--num-steps", type=int, default=50, help="U-Net calls of a generation (default 50)")


def run_macs(options: Namespace) -> str:
    from deepcache.costs.profile import Profile
    from deepcache.models.architectures import architecture

    require_whole("num_steps", options.num_steps, at_least=1, at_most=MOST_STEPS)
    known = architecture(options.model, context_tokens=options.context_tokens)
    asked = {name: getattr(options, name) for name in ("num_steps", "interval", "branch")}
    profile = Profile(options.model, known.cost(), known.convention, known.context_tokens, **asked)
    return json.dumps(profile.for_machines(), indent=2) if options.json else profile.page(layer_wise=options.layer_wise)


def run_explain(options: Namespace) -> str:
    from deepcache.costs.explain import explain
    from deepcache.models.architectures import skeleton

    order = {} if options.order is None else {"order": options.order}
    plan = Interval(options.interval, options.branch, last_step_full=options.last_step_full, **order)
    pipeline, context_tokens = skeleton(options.model)
    found = explain(pipeline, plan, options.num_steps, name=options.model, context_tokens=context_tokens)
    return json.dumps(found.for_machines(), indent=2) if options.json else str(found)

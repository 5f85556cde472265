"""`macs`: multiply-accumulates of full and shallow steps."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("macs", help="multiply-accumulates of full and shallow steps, without weights")
    command.add_argument(
        "--model", required=True, help="a known name, a hub id, a diffusers folder, a checkpoint, or a config.json"
    )
    command.add_argument("--branch", type=int, help="the skips 0..BRANCH stay live; all branches if not given")
    command.add_argument("--interval", type=int, help="N: mean over the steps of a uniform plan")
    command.add_argument("--num-steps", type=int, default=50, help="U-Net calls of a generation (default 50)")
    command.add_argument("--context-tokens", type=int, help="length of the prompt (default: the model's own, else 77)")
    command.add_argument("--layer-wise", action="store_true", help="show every stage")
    command.add_argument("--json", action="store_true", help="for machines: integers, 1 MAC each")
    command.set_defaults(run=run)


def run(options: Namespace) -> str:
    from deepcache.costs.macs_report import report, to_text
    from deepcache.models.architectures import architecture

    found = report(
        options.model,
        architecture(options.model, context_tokens=options.context_tokens),
        branch=options.branch,
        interval=options.interval,
        num_steps=options.num_steps,
    )
    return json.dumps(found, indent=2) if options.json else to_text(found, layer_wise=options.layer_wise)

"""Options that several commands share, and the examples below a command's help."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from deepcache.plan import MOST_STEPS, Order, require_order
from deepcache.sampling.seeds import whole

MODEL = "a known name, a hub id, a diffusers folder, or a checkpoint"


def new(commands: Any, name: str, text: str, *examples: str) -> ArgumentParser:
    """Add a command with a line of help, and examples of the command line below it."""
    lines = (f"  python -m deepcache {name} {example}" for example in examples)
    found: ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog="\n".join(["examples:" if len(examples) > 1 else "example:", *lines]),
        formatter_class=RawDescriptionHelpFormatter,
    )
    return found


def order_in(text: str) -> Order:
    """Return the order that an argument names."""
    return require_order(int(text) if text.isdecimal() else text)


def add_solver(command: ArgumentParser) -> None:
    """Add the options of the solver, whose defaults are the model's protocol."""
    add = command.add_argument
    add("--scheduler", help="the solver's name (default: the protocol's, as for --num-steps and --guidance-scale)")
    add("--num-steps", type=whole(at_most=MOST_STEPS), help="steps of the scheduler")
    add("--guidance-scale", type=float, help="scale of classifier-free guidance; 1 is no guidance")


def add_prompts(command: ArgumentParser) -> None:
    text = "a prompt a line, PartiPrompts' .tsv, or COCO's captions .json"
    command.add_argument("--prompts", type=Path, metavar="FILE", help=text)


def add_device(command: ArgumentParser) -> None:
    command.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")

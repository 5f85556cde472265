"""`convert` writes a single checkpoint file as a diffusers folder."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from deepcache.commands.options import new


def add(commands: Any) -> None:
    command = new(commands, "convert", "write a checkpoint file as a diffusers folder", "model.ckpt --out ldm-4-g")
    command.add_argument("checkpoint", type=Path, help="the .ckpt or .safetensors file, e.g. CompVis' cin256-v2")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the new folder to write")
    command.add_argument("--config", type=Path, metavar="YAML", help="CompVis' configuration (default: cin256-v2's)")
    command.set_defaults(run=run)


def run(options: Namespace) -> str:
    from deepcache.models.loading import load_ldm, load_single_file, require_free, save

    require_free(options.out)
    config = options.config
    save(load_single_file(options.checkpoint) if config is None else load_ldm(options.checkpoint, config), options.out)
    return f"written: {options.out}"

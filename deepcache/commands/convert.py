"""`convert`: a single file to a diffusers folder."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("convert", help="a checkpoint file as a diffusers folder, which loads by its path")
    command.add_argument("checkpoint", type=Path, help="a .ckpt or .safetensors file, e.g. CompVis' cin256-v2")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a folder that is not there yet")
    command.add_argument("--config", type=Path, metavar="YAML", help="CompVis' own (default: cin256-v2's)")
    command.set_defaults(run=run)


def run(options: Namespace) -> str:
    from deepcache.models.exporting import require_free, save
    from deepcache.models.ldm import load_ldm
    from deepcache.models.single_file import load_single_file

    require_free(options.out)
    is_ldm = options.config is not None
    pipe = load_ldm(options.checkpoint, options.config) if is_ldm else load_single_file(options.checkpoint)
    save(pipe, options.out)
    return f"written: {options.out}"

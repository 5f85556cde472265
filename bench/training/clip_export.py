"""From a trained open_clip model to the folder that the package ships: open_clip's own format, fp16 safetensors."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
from open_clip.push_to_hf_hub import save_for_hf
from torch import nn
from transformers import CLIPTokenizer

from bench.training.contrastive import config


def export_clip(model: nn.Module, tokenizer: CLIPTokenizer, out: Path) -> None:
    """What `deepcache.metrics.clip_score.load_clip(out)` reads.

    Args:
        model: of `contrastive.config()`, trained on images in -1..1; stays as it is.
        tokenizer: the one it was trained with; its files go beside the weights.
        out: the folder, made if need be.
    """
    stored: Any = deepcopy(model).half()
    half = [0.5] * 3  # mean and deviation a channel: from 0..1 to -1..1
    open_clip.set_model_preprocess_cfg(stored, {"mean": half, "std": half})
    settings = config()
    settings["text_cfg"]["hf_tokenizer_name"] = "mini-clip"  # any name: open_clip takes the folder's
    save_for_hf(stored, tokenizer, settings, str(out), safe_serialization=True)

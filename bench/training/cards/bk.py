"""The cards of mini-bk-base, mini-bk-small and mini-bk-tiny."""

from __future__ import annotations

import json
from pathlib import Path

from bench.training import text_to_image
from bench.training.cards import prompted
from bench.training.cards.card import DATA, Card, num_parameters, trained
from deepcache.errors import DeepCacheError
from deepcache.models import embedded, fashion, load
from deepcache.models.architectures import architecture

REMOVED = {
    "base": "a resnet and its attention fewer in every block",
    "small": "a resnet and its attention fewer in every block, and no middle",
    "tiny": "a resnet and its attention fewer in every block, no middle, and no innermost level",
}


def card(size: str, _held_out: fashion.Painted, runs: Path) -> Card:
    """Samples and scores of a pruned mini-sd as it is shipped, at mini-sd's best guidance."""
    name = f"mini-bk-{size}"
    history = trained(
        "U-Net, trained further with mini-sd's text encoder as it is",
        runs / "mini-bk" / size,
        text_to_image.BATCH,
    )
    guidance = _guidance()
    full, pipe = load("mini-sd"), load(name)
    macs = architecture(name).cost().full()
    share = macs / architecture("mini-sd").cost().full()
    samples = prompted.prompted(pipe, guidance)
    about = f"""mini-sd's U-Net with {REMOVED[size]}: {num_parameters(pipe.unet)} parameters of
{num_parameters(full.unet)}, {share:.0%} of the MACs. The blocks are those that BK-SDM removes, and it stands for BK-SDM
{size.capitalize()}. Autoencoder, text encoder and tokenizer are mini-sd's, and not stored twice."""
    return Card(
        name=name,
        about=about,
        facts=(DATA, "made by `python -m bench.training mini-sd mini-bk`", history),
        measured=f"Of {prompted.NUM_SAMPLES} uncached samples (PLMS {prompted.NUM_STEPS} steps, guidance "
        f"{guidance:g}, mini-sd's best), their contents by mini-features, the clip score by mini-clip; MACs of one "
        "U-Net call, attention not counted:",
        scores={
            "guidance": guidance,
            **samples.scores(),
            "parameters": sum(p.numel() for p in pipe.unet.parameters()),
            "macs": macs,
            "macs_share_of_mini_sd": share,
        },
        picture=samples.picture(f"samples of {name}, each above its prompt", guidance),
    )


def _guidance() -> float:
    path = embedded.WEIGHTS / "mini-sd" / "scores.json"
    if not path.is_file():
        raise DeepCacheError(f"expected mini-sd's best guidance in {path}; write the card of mini-sd first")
    return float(json.loads(path.read_text())["guidance"])

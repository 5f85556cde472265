"""`python -m deepcache.models.train mini-ldm mini-features cards`: train, export and score the embedded models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deepcache.errors import DeepCacheError
from deepcache.models import fashion
from deepcache.models.embedded import WEIGHTS
from deepcache.models.train import autoencoder, card, classifier, denoiser, export


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deepcache.models.train", description=__doc__)
    parser.add_argument(
        "acts", nargs="+", choices=["mini-ldm", "mini-features", "cards"], help="what to make, in order"
    )
    parser.add_argument("--data", type=Path, default=fashion.DEBIAN_FOLDER, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="checkpoints and logs; a stopped run goes on")
    options = parser.parse_args(arguments)
    try:
        _run(options.acts, options.data, options.runs)
    except DeepCacheError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(acts: list[str], data: Path, runs: Path) -> None:
    train = fashion.load("train", data)
    held_out = fashion.paint(fashion.load("test", data), seed=0)
    ldm, features = runs / "mini-ldm", runs / "mini-features"
    for act in acts:
        if act == "mini-ldm":
            vqvae = autoencoder.train_autoencoder(train, ldm)
            export.export_ldm(vqvae, denoiser.train_denoiser(train, vqvae, ldm), WEIGHTS / act)
        elif act == "mini-features":
            vqvae = autoencoder.train_autoencoder(train, ldm)
            export.export_features(classifier.train_classifier(train, vqvae, features), held_out, WEIGHTS / act)
        else:
            print(card.write_features_card(held_out, features, WEIGHTS / "mini-features"))
            print(card.write_ldm_card(held_out, ldm, WEIGHTS / "mini-ldm"))


if __name__ == "__main__":
    sys.exit(main())

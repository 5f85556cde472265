"""`python -m bench.training mini-sd mini-bk cards`: train, export and score the embedded models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffusers import AutoencoderKL, VQModel

from bench.training import (
    autoencoder,
    classifier,
    contrastive,
    denoiser,
    export,
    pixels,
    pruned,
    text_to_image,
)
from bench.training.cards import CARDS
from bench.training.clip_export import export_clip
from bench.training.tokens import tokenizer
from deepcache.errors import DeepCacheError
from deepcache.models import embedded, fashion


@dataclass(frozen=True)
class Workshop:
    """Where the data and the trainings are; each act resumes what is in `runs`, and exports into the package."""

    data: Path
    runs: Path

    @cached_property
    def garments(self) -> fashion.Garments:
        """To train on."""
        return fashion.load("train", self.data)

    @cached_property
    def held_out(self) -> fashion.Painted:
        """The test split, painted always in the same way."""
        return fashion.paint(fashion.load("test", self.data), seed=0)

    def mini_ldm(self) -> None:
        vqvae = self._vqvae()
        model = denoiser.train_denoiser(self.garments, vqvae, self.runs / "mini-ldm")
        export.export_ldm(vqvae, model, embedded.WEIGHTS / "mini-ldm")

    def mini_features(self) -> None:
        model = classifier.train_classifier(self.garments, self._vqvae(), self.runs / "mini-features")
        export.export_features(model, self.held_out, embedded.WEIGHTS / "mini-features")

    def mini_sd(self) -> None:
        vae, data = self._captioned()
        model = text_to_image.train_text_to_image(data, self.runs / "mini-sd")
        export.export_sd(vae, model, embedded.WEIGHTS / "mini-sd")

    def mini_bk(self) -> None:
        """All sizes; mini-sd's training comes first, where it is not finished."""
        _, data = self._captioned()
        full = text_to_image.train_text_to_image(data, self.runs / "mini-sd")
        for size in pruned.SIZES:
            model = pruned.train_pruned(size, full, data, self.runs / "mini-bk")
            export.export_unet(model.unet, embedded.WEIGHTS / f"mini-bk-{size}")

    def mini_ddpm(self) -> None:
        model = pixels.train_pixels(self.garments, self.runs / "mini-ddpm")
        export.export_ddpm(model, embedded.WEIGHTS / "mini-ddpm")

    def mini_clip(self) -> None:
        model = contrastive.train_contrastive(self.garments, self.runs / "mini-clip")
        export_clip(model, tokenizer(), embedded.WEIGHTS / "mini-clip")

    def cards(self, names: list[str]) -> None:
        """Write the cards of `names`, in the order in which they build on each other, and say the scores."""
        for name in (name for name in CARDS if name in names):
            card = CARDS[name](self.held_out, self.runs)
            card.write(embedded.WEIGHTS / name)
            print(name, card.scores)

    def _vqvae(self) -> VQModel:
        """mini-ldm's autoencoder as it was trained here."""
        return autoencoder.train_autoencoder(self.garments, self.runs / "mini-ldm")

    def _captioned(self) -> tuple[AutoencoderKL, text_to_image.Captioned]:
        """mini-sd's autoencoder, which begins as the one that mini-ldm is shipped with, and its training data."""
        run = self.runs / "mini-sd"
        vae = text_to_image.train_autoencoder(self.garments, embedded.load("mini-ldm").vqvae, run)
        return vae, text_to_image.Captioned(self.garments, vae, run)


ACTS: dict[str, Callable[[Workshop], None]] = {
    "mini-ldm": Workshop.mini_ldm,
    "mini-features": Workshop.mini_features,
    "mini-sd": Workshop.mini_sd,
    "mini-bk": Workshop.mini_bk,
    "mini-ddpm": Workshop.mini_ddpm,
    "mini-clip": Workshop.mini_clip,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("acts", nargs="+", choices=[*ACTS, "cards"], help="what to make, in order")
    parser.add_argument("--data", type=Path, default=fashion.DEBIAN_FOLDER, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="checkpoints and logs; a stopped run goes on")
    parser.add_argument(
        "--only", nargs="+", choices=CARDS, metavar="MODEL", help="write these cards; otherwise, of all trained in RUNS"
    )
    options = parser.parse_args(arguments)
    workshop = Workshop(options.data, options.runs)
    try:
        for act in options.acts:
            if act == "cards":
                workshop.cards(options.only or _trained(options.runs))
            else:
                ACTS[act](workshop)
    except DeepCacheError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _trained(runs: Path) -> list[str]:
    """The models with a folder in `runs`.

    Raises:
        DeepCacheError: there is none.
    """
    found = [name for name in CARDS if (runs / _family(name)).is_dir()]
    if not found:
        raise DeepCacheError(f"expected trainings in {runs}, which has none; train first, or give --runs or --only")
    return found


def _family(name: str) -> str:
    return "mini-bk" if name.startswith("mini-bk-") else name


if __name__ == "__main__":
    sys.exit(main())

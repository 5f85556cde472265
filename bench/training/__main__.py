"""Train, export and score the embedded models: `python -m bench.training mini-sd mini-bk cards`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from diffusers import AutoencoderKL, VQModel

from bench.training import fashion, mini_bk, mini_clip, mini_ddpm, mini_features, mini_ldm, mini_sd
from bench.training.cards import Card
from bench.training.tokens import tokenizer
from deepcache.errors import DeepCacheError
from deepcache.models import embedded, load

# The cards; models that measure come before models that are measured
CARDS: dict[str, Callable[[fashion.Painted, Path], Card]] = {
    "mini-features": mini_features.card,
    "mini-clip": mini_clip.card,
    "mini-ldm": mini_ldm.card,
    "mini-ddpm": mini_ddpm.card,
    "mini-sd": mini_sd.card,
    **{f"mini-bk-{size}": partial(mini_bk.card, size) for size in mini_bk.SIZES},
}


@dataclass(frozen=True)
class Workshop:
    """The folders of the data and of the trainings; each act resumes from `runs`, and exports into the package."""

    data: Path
    runs: Path

    @cached_property
    def garments(self) -> fashion.Garments:
        """Return the garments to train on."""
        return fashion.load("train", self.data)

    @cached_property
    def held_out(self) -> fashion.Painted:
        """Return the test split, which is always painted in the same way."""
        return fashion.paint(fashion.load("test", self.data), seed=0)

    def make_ldm(self) -> None:
        vqvae = self._vqvae()
        model = mini_ldm.train_denoiser(self.garments, vqvae, self.runs / "mini-ldm")
        mini_ldm.export(vqvae, model, embedded.WEIGHTS / "mini-ldm")

    def make_features(self) -> None:
        model = mini_features.train_classifier(self.garments, self._vqvae(), self.runs / "mini-features")
        mini_features.export(model, self.held_out, embedded.WEIGHTS / "mini-features")

    def make_sd(self) -> None:
        vae, data = self._captioned()
        model = mini_sd.train_text_to_image(data, self.runs / "mini-sd")
        mini_sd.export(vae, model, embedded.WEIGHTS / "mini-sd")

    def make_bk(self) -> None:
        """Make all sizes; mini-sd's training comes first if it is not finished."""
        _, data = self._captioned()
        full = mini_sd.train_text_to_image(data, self.runs / "mini-sd")
        for size in mini_bk.SIZES:
            model = mini_bk.train_pruned(size, full, data, self.runs / "mini-bk")
            mini_bk.export(model.unet, embedded.WEIGHTS / f"mini-bk-{size}")

    def make_ddpm(self) -> None:
        model = mini_ddpm.train_pixels(self.garments, self.runs / "mini-ddpm")
        mini_ddpm.export(model, embedded.WEIGHTS / "mini-ddpm")

    def make_clip(self) -> None:
        model = mini_clip.train_contrastive(self.garments, self.runs / "mini-clip")
        mini_clip.export(model, tokenizer(), embedded.WEIGHTS / "mini-clip")

    def cards(self, names: list[str]) -> None:
        """Write the cards of `names`, in the order in which they build on each other, and print the scores."""
        for name in (name for name in CARDS if name in names):
            card = CARDS[name](self.held_out, self.runs)
            card.write(embedded.WEIGHTS / name)
            print(name, card.scores)

    def _vqvae(self) -> VQModel:
        """Return mini-ldm's autoencoder as it was trained here."""
        return mini_ldm.train_autoencoder(self.garments, self.runs / "mini-ldm")

    def _captioned(self) -> tuple[AutoencoderKL, mini_sd.Captioned]:
        """Return mini-sd's autoencoder, which begins as mini-ldm's shipped one, and its training data."""
        run = self.runs / "mini-sd"
        vae = mini_sd.train_autoencoder(self.garments, load("mini-ldm").vqvae, run)
        return vae, mini_sd.Captioned(self.garments, vae, run)


ACTS: dict[str, Callable[[Workshop], None]] = {
    "mini-ldm": Workshop.make_ldm,
    "mini-features": Workshop.make_features,
    "mini-sd": Workshop.make_sd,
    "mini-bk": Workshop.make_bk,
    "mini-ddpm": Workshop.make_ddpm,
    "mini-clip": Workshop.make_clip,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("acts", nargs="+", choices=[*ACTS, "cards"], help="what to make, in this order")
    parser.add_argument("--data", type=Path, default=fashion.DEBIAN_FOLDER, help="Fashion-MNIST's IDX files")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="checkpoints and logs, to go on from")
    parser.add_argument(
        "--only", nargs="+", choices=CARDS, metavar="MODEL", help="the cards to write (default: all trained in RUNS)"
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
    """Return the models that have a folder in `runs`.

    Raises:
        DeepCacheError: no model has one.
    """
    found = [name for name in CARDS if (runs / _family(name)).is_dir()]
    if not found:
        raise DeepCacheError(f"expected trainings in {runs}, which has none; train first, or give --runs or --only")
    return found


def _family(name: str) -> str:
    return "mini-bk" if name.startswith("mini-bk-") else name


if __name__ == "__main__":
    sys.exit(main())

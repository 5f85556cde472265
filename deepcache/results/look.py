"""The page of a first look at a model: images side by side, and what each way to sample them costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from deepcache.results.figures import picture
from deepcache.results.text import plain, rendered

FAR_DB = 20.0  # below it an image is another one
_WIDEST = 384  # pixels of an image on the page
_TITLES = ("way", "GMACs", "of uncached", "s an image", "speedup", "PSNR (dB)", "worst (dB)", "perceptual")
_NOTES = {
    "GMACs": "billions, of the U-Net for one image without guidance, everything counted; no plan costs more than reuse",
    "s an image": "seconds of the whole pipeline, measured once in this process; they vary, where MACs do not",
    "PSNR": "to the uncached image of the same seed, in dB: above 40 one sees no change, below 20 another image",
    "reuse": "is DeepCache as published: the feature of the last full step",
    "predicted": "predicts that feature (the default order); idle steps predict the U-Net's output and run none of it",
    "recommended": "is the plan that the package has for this model, solver, number of steps and guidance",
    "few images": "say little: tune checks a plan on seeds that had no part in its choice",
}


def page(model: str, ways: Sequence[Mapping[str, Any]], rows: Sequence[str], *, best: str, **values: Any) -> str:
    """Return the page.

    Args:
        model: what the page is about.
        ways: the figures of each way to sample, the first of which is uncached, with its PIL `images`, one a row.
        rows: what the images of each row show.
        best: the name of the way to take.
        **values: `advice`, `facts`, `distance`, `made_by` and `next_command`, texts that the page shows.
    """
    has_distance = ways[0]["perceptual"] is not None
    looks = [
        {
            "name": way["name"],
            "how": way["how"],
            "share": f"{way['share']:.0%}",
            "is_best": way["name"] == best,
            "cells": _cells(way, ways[0], has_distance=has_distance),
        }
        for way in ways
    ]
    shown = [
        {"title": plain(title), "cells": [_cell(way, i, plain(title), is_first=way is ways[0]) for way in ways]}
        for i, title in enumerate(rows)
    ]
    is_small = max(ways[0]["images"][0].size) <= _WIDEST // 4
    titles = _TITLES if has_distance else _TITLES[:-1]
    return rendered(
        "look.html",
        model=model, looks=looks, rows=shown, titles=(*titles, "in Python"), is_small=is_small, notes=_NOTES.items(),
        **values,
    )  # fmt: skip


def _cells(way: Mapping[str, Any], uncached: Mapping[str, Any], *, has_distance: bool) -> list[str]:
    """Return a row of the table without its name and its line of Python."""
    cost = [f"{way['macs'] / 1e9:,.{2 if uncached['macs'] > 1e11 else 3}f}", f"{way['share']:.0%}"]
    times = [f"{way['latency_s']:.2f}", f"{uncached['latency_s'] / way['latency_s']:.2f}"]
    if way is uncached:
        return [*cost, *times, "-", "-", *["-"] * has_distance]
    near = [f"{median(way['psnr_db']):.1f}", f"{min(way['psnr_db']):.1f}"]
    return [*cost, *times, *near, *([_small(median(way["perceptual"]))] if has_distance else [])]


def _small(value: float) -> str:
    return f"{value:.4f}" if value == 0 or value >= 1e-4 else "< 0.0001"


def _cell(way: Mapping[str, Any], row: int, title: str, *, is_first: bool) -> dict[str, Any]:
    """Return an image of the page with its PSNR; pixels of small images are kept for the browser to enlarge."""
    image, psnr = way["images"][row].copy(), way["psnr_db"][row]
    image.thumbnail((_WIDEST, _WIDEST))
    name = f"{title}, {way['name']}"
    return {
        "picture": picture(name, name, image),
        "psnr": "uncached" if is_first else f"{psnr:.1f} dB",
        "is_far": not is_first and psnr < FAR_DB,
    }

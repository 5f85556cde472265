"""A record against its baseline: exact counts, fidelity seed by seed, and ratios of times, but no absolute times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from deepcache.results.record import COUNTS, Record
from deepcache.results.text import plain, some

# Two records of one key are the same row only if they were run alike; seeds of other runs have no counterpart.
RUN = ("model", "scheduler", "branch", "order", "first_seed", "num_samples", "num_steps", "batch_size")
# A number depends on these settings. The machine is not among them: pairs and ratios do not depend on the machine.
CONDITIONS = (
    "weights", "device", "dtype", "num_threads", "extractor", "clip", "perceptual", "guidance_scale",
    "uncached_steps", "prompts",
)  # fmt: skip
ALLOWANCES = ("experiments", "speed", *CONDITIONS)
HELP = (
    "gate the other rows although `experiments` of the baseline did not run, `speed` was not measured, or a setting "
    f"differs ({', '.join(CONDITIONS)}); repeat the option to allow several"
)
CONFIDENCE = 0.99
# A ratio of two times that are measured in turns in one process may change by this share of the baseline's: a speedup
# may fall by 15%, and the share of a shallow step may rise by 10%.
SPEED = {"speedup": -0.15, "shallow_share": +0.10}


# The metrics of single seeds, each with its unit and the value above which a seed shows the same image, however far it
# falls; higher values are better. A row fails if the whole bootstrap interval of the change of its mean lies below
# -MEAN_FALL, or if a single seed falls by more than SEED_FALL: the noise of a machine does neither, and every destroyed
# image does.
FIDELITY = {"psnr_db": ("dB", 40.0), "clip_score": ("points", math.inf)}
MEAN_FALL, SEED_FALL = 0.1, 3.0
# What the noise of a machine does was measured on all benches and two machines (16,303 seeds of PSNR, 3,140 of CLIP).
# PSNR: 99.9% of the seeds differ by less than 0.01 dB, and below 40 dB none by more than 0.45 dB. Above 40 dB noise may
# turn a single code of mini-ldm's autoencoder, which is the whole difference of an image there: 80 dB become 46 dB.
# An allowed fall of 3 dB lets the squared error double, counted from 40 dB. A destroyed image falls by all its PSNR.
# CLIP score: no seed differs by more than 0.18 points, and another image in place of a sample costs at least 32 points.


class Kind(Enum):
    """What a finding is, in the order of a verdict."""

    REGRESSION = "regression"
    INCOMPARABLE = "cannot be compared"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """What the gate says: regressions fail the gate, and so does what cannot be compared unless `allow` is allowed."""

    text: str
    kind: Kind = Kind.REGRESSION
    allow: str = ""


def differences(base: Record, found: Record, names: Iterable[str]) -> dict[str, str]:
    """Return a sentence for each of these settings that differs between the records."""

    def said(record: Record, name: str) -> str:
        return "missing" if record.settings.get(name) is None else plain(str(record.settings[name]))

    differing = [name for name in names if base.settings.get(name) != found.settings.get(name)]
    return {name: f"{name} is {said(found, name)} instead of {said(base, name)}" for name in differing}


def numbers(record: Record, names: Iterable[str]) -> dict[str, float]:
    """Return those metrics or settings of these names that the record has as numbers."""
    known = {**record.settings, **record.metrics}
    return {name: value for name in names if isinstance(value := known.get(name), (int, float))}


def compare(base: Record, found: Record, rerun: Record | None = None) -> Iterator[Finding]:
    """Find changed counts, and falls of fidelity or speed beyond their tolerance, between two records of one row.

    A ratio is lost if it looks lost in `found` and in `rerun`, the record of the same test when it was run once more.
    """
    counts = numbers(found, COUNTS)
    for name, old in numbers(base, COUNTS).items():
        if name not in counts:
            yield Finding(f"{name}: {old:.12g} in the baseline, not measured here")
        elif counts[name] != old:
            yield Finding(f"{name}: {old:.12g} -> {counts[name]:.12g}; update the baseline if intended")
    for name in FIDELITY:
        before, after = base.per_seed.get(name, []), found.per_seed.get(name, [])
        if before and len(before) != len(after):
            counted = f"the baseline has {len(before)} seeds and this record {len(after)}"
            yield Finding(f"{name}: {counted}", Kind.INCOMPARABLE)
        elif before:  # the record may have more than the baseline
            yield from _falls(name, base, after)
    again = {} if rerun is None else numbers(rerun, SPEED)
    confirmed = {} if rerun is None else suspects(base, rerun)
    for name, (old, new) in suspects(base, found).items():
        change = f"{name}: {old:.3g} -> {new:.3g} ({new / old - 1:+.1%}), tolerance {abs(SPEED[name]):.0%}"
        if rerun is not None and rerun.outcome != "passed":
            yield Finding(f"{change}; the re-run failed")
        elif name not in again:
            yield Finding(f"{change}; not re-run")
        elif name in confirmed:
            yield Finding(f"{change}; confirmed by a re-run, {again[name]:.3g}")
        else:
            yield Finding(f"{change}; not confirmed by a re-run, {again[name]:.3g}", Kind.NOTE)


def suspects(base: Record, found: Record) -> dict[str, tuple[float, float]]:
    """Return the ratios, in the baseline and in the run, that are worse by more than their tolerance."""
    worse, after = {}, numbers(found, SPEED)
    for name, old in numbers(base, SPEED).items():
        new, limit = after.get(name, old), old * (1 + SPEED[name])
        if new < limit < old or new > limit > old:
            worse[name] = (old, new)
    return worse


def interval(changes: Sequence[float]) -> tuple[float, float]:
    """Return the percentile-bootstrap interval of the mean of paired differences at `CONFIDENCE`, from a fixed seed.

    Source: An Introduction to the Bootstrap (Efron and Tibshirani, 1993), chapter 13.
    """
    import numpy as np  # slow to import, and a pytest session without a gate needs none of it

    from deepcache.metrics.statistics import bootstrap

    return bootstrap(np.mean, np.asarray(changes, dtype=np.float64), (1 - CONFIDENCE) / 2)


def _falls(name: str, base: Record, after: Sequence[float]) -> Iterator[Finding]:
    """Find a fall of the mean, and seeds that fell too far; values above `same` count as `same`."""
    before, (unit, same) = base.per_seed[name], FIDELITY[name]
    changes = [new - old for old, new in zip(before, after, strict=True)]
    low, high = interval(changes) if sum(changes) / len(changes) < -MEAN_FALL else (0.0, 0.0)
    if high < -MEAN_FALL:
        change = f"the mean over {len(changes)} seeds changes by {low:+.3f} to {high:+.3f} {unit}"
        yield Finding(f"{name}: {change} ({CONFIDENCE:.0%} bootstrap), tolerance -{MEAN_FALL} {unit}")
    falls = [min(old, same) - min(new, same) for old, new in zip(before, after, strict=True)]
    fallen = sorted((i for i, fall in enumerate(falls) if fall > SEED_FALL), key=lambda i: -falls[i])
    if fallen:
        first_seed = numbers(base, ["first_seed"]).get("first_seed", 0)
        named = [f"seed {first_seed + i:.0f} {before[i]:.4g} -> {after[i]:.4g}" for i in fallen]
        count = f"{len(fallen)} of {len(before)} seeds fall by more than {SEED_FALL:g} {unit}"
        yield Finding(f"{name}: {count}: {some(named, ', ')}")

"""A record against its baseline: exact counts, fidelity seed by seed, ratios of times.

Absolute times, which belong to a machine, and aggregates (FID and its kin), which have no pairs, are not compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deepcache.metrics.bootstrap import bootstrap
from deepcache.results.record import COUNTS, Record

REGRESSION, INCOMPARABLE, NOTE = "regression", "cannot be compared", "note"

CONFIDENCE = 0.99
NUM_NAMED = 3  # seeds that one finding names


@dataclass(frozen=True)
class Fidelity:
    """By how much a value of each seed may fall; higher is better.

    The mean may fall by `mean`, and no single seed by more than `seed`: the noise of a machine reaches neither, and
    every destroyed image does. A seed that stays above `same` shows the same image, by whatever it falls.
    """

    unit: str
    mean: float
    seed: float
    same: float = math.inf

    def fall(self, before: float, after: float) -> float:
        """How far a seed's value fell below what it was, or below `same`."""
        return min(before, self.same) - min(after, self.same)


# What the noise of a machine does was measured on all benches, recorded on two machines: 192 rows and 16,303 seeds of
# PSNR, 96 rows and 3,140 seeds of CLIP score.
# PSNR: 99.9% of the seeds differ by less than 0.01 dB, and below 40 dB none by more than 0.45 dB. Above 40 dB noise may
# turn a single code of mini-ldm's autoencoder, which is the whole difference of an image there: 80 dB become 46 dB.
# A floor of 3 dB lets the squared error double, counted from 40 dB. A destroyed image falls by all its PSNR.
# CLIP score: no seed differs by more than 0.18 points. Noise, grey or another prompt's image in place of four samples
# of mini-sd costs at least 32 points each; all rows of the paper's Tables 13 and 14 lie within 2 points.
FIDELITY = {"psnr_db": Fidelity("dB", mean=0.1, seed=3.0, same=40.0), "clip_score": Fidelity("points", 0.1, seed=3.0)}


@dataclass(frozen=True)
class Ratio:
    """A ratio of times measured in turns in one process, and the share of it that may be lost."""

    tolerance: float
    higher_is_better: bool

    def is_suspect(self, base: float, found: float) -> bool:
        limit = base * (1 - self.tolerance if self.higher_is_better else 1 + self.tolerance)
        return found < limit if self.higher_is_better else found > limit

    def better(self, first: float, second: float) -> float:
        return max(first, second) if self.higher_is_better else min(first, second)


SPEED = {"speedup": Ratio(0.15, higher_is_better=True), "shallow_share": Ratio(0.10, higher_is_better=False)}


@dataclass(frozen=True)
class Finding:
    """Something to tell. A regression fails the gate; what cannot be compared does, too, unless `allow` is allowed."""

    text: str
    kind: str = REGRESSION
    allow: str = ""


def number(record: Record, key: str) -> float | None:
    """A metric, or the setting of that name; None where it is neither."""
    value = record.metrics.get(key, record.settings.get(key))
    return None if value is None or isinstance(value, str) else value


def is_gated(record: Record) -> bool:
    """Whether a baseline's record has anything that is compared."""
    return any(number(record, key) is not None for key in (*COUNTS, *SPEED)) or any(map(record.per_seed.get, FIDELITY))


def compare(base: Record, found: Record, rerun: Record | None = None) -> list[Finding]:
    """Everything that differs between two records of the same key.

    `rerun` is the same test run once more: of a ratio that looks lost, the better of the two counts.
    """
    return [*_exact(base, found), *_fidelity(base, found), *_speed(base, found, rerun)]


def suspects(base: Record, found: Record) -> list[str]:
    """Names of the ratios that are worse than the baseline's by more than their tolerance."""
    pairs = ((key, number(base, key), number(found, key)) for key in SPEED)
    return [key for key, old, new in pairs if old is not None and new is not None and SPEED[key].is_suspect(old, new)]


def untimed(base: Record, found: Record) -> bool:
    """Whether the baseline holds a ratio that the record does not."""
    return any(number(base, key) is not None and number(found, key) is None for key in SPEED)


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """The interval in which the mean of paired differences lies, at `CONFIDENCE`."""
    return bootstrap(np.mean, np.asarray(differences, dtype=np.float64), (1 - CONFIDENCE) / 2)


def _exact(base: Record, found: Record) -> Iterator[Finding]:
    for key in COUNTS:
        old, new = number(base, key), number(found, key)
        if old is None or old == new:
            continue
        if new is None:
            yield Finding(f"{key}: {old:.12g} in the baseline, not measured here")
        else:
            yield Finding(f"{key}: {old:.12g} -> {new:.12g}; update the baseline if intended")


def _fidelity(base: Record, found: Record) -> Iterator[Finding]:
    for key, law in FIDELITY.items():
        old, new = base.per_seed.get(key, []), found.per_seed.get(key, [])
        if not old:  # the baseline has no such metric, and the record more than the baseline
            continue
        if len(old) != len(new):
            yield Finding(f"{key}: the baseline has {len(old)} seeds and this record {len(new)}", INCOMPARABLE)
            continue
        yield from _mean(key, law, [after - before for before, after in zip(old, new, strict=True)])
        yield from _each_seed(key, law, base, list(zip(old, new, strict=True)))


def _mean(key: str, law: Fidelity, differences: Sequence[float]) -> Iterator[Finding]:
    if sum(differences) / len(differences) >= -law.mean:
        return
    low, high = interval(differences)
    if high < -law.mean:
        yield Finding(
            f"{key}: the mean over {len(differences)} seeds changes by {low:+.3f} to {high:+.3f} {law.unit} "
            f"({CONFIDENCE:.0%} bootstrap), tolerance -{law.mean} {law.unit}"
        )


def _each_seed(key: str, law: Fidelity, base: Record, pairs: Sequence[tuple[float, float]]) -> Iterator[Finding]:
    falls = [law.fall(before, after) for before, after in pairs]
    fallen = sorted((i for i, fall in enumerate(falls) if fall > law.seed), key=lambda i: -falls[i])
    if not fallen:
        return
    first_seed = number(base, "first_seed") or 0
    named = [f"seed {first_seed + i:.0f} {pairs[i][0]:.4g} -> {pairs[i][1]:.4g}" for i in fallen[:NUM_NAMED]]
    more = f" and {len(fallen) - NUM_NAMED} more" if len(fallen) > NUM_NAMED else ""
    count = f"{len(fallen)} of {len(pairs)} seeds"
    yield Finding(f"{key}: {count} fall by more than {law.seed:g} {law.unit}: {', '.join(named)}{more}")


def _speed(base: Record, found: Record, rerun: Record | None) -> Iterator[Finding]:
    for key in suspects(base, found):
        ratio, old, first = SPEED[key], number(base, key), number(found, key)
        rerun_failed = rerun is not None and rerun.outcome != "passed"
        second = None if rerun is None or rerun_failed else number(rerun, key)
        assert old is not None
        assert first is not None
        change = f"{key}: {old:.3g} -> {first:.3g} ({first / old - 1:+.1%}), tolerance {ratio.tolerance:.0%}"
        if second is None:
            yield Finding(f"{change}; {'the re-run failed' if rerun_failed else 'not re-run'}")
        elif ratio.is_suspect(old, ratio.better(first, second)):
            yield Finding(f"{change}; confirmed by a re-run, {second:.3g}")
        else:
            yield Finding(f"{change}; not confirmed by a re-run, {second:.3g}", NOTE)

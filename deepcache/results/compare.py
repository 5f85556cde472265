"""A record against its baseline: exact counts, paired fidelity, ratios of times.

Not compared are absolute times, which belong to a machine, and aggregates (FID and its kin), which have no pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deepcache.results.record import Record

EXACT = ("macs", "num_full", "num_shallow", "feature_bytes", "modules_full", "modules_shallow")

# By how much the mean over paired seeds may fall, in the unit printed; higher is better in both.
FIDELITY = {"psnr_db": (0.1, "dB"), "clip_score": (0.1, "points")}
CONFIDENCE = 0.99
RESAMPLES = 2000


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
    """Something to tell; `regression` makes the gate fail."""

    text: str
    regression: bool = True


def number(record: Record, key: str) -> float | None:
    """A metric, or the setting of that name; None where it is neither or no number."""
    value = record.metrics.get(key, record.settings.get(key))
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


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
    """Where the mean of paired differences lies: percentile bootstrap at `CONFIDENCE`, from a fixed seed.

    Source: An Introduction to the Bootstrap (Efron and Tibshirani, 1993), chapter 13.
    """
    values, generator = np.asarray(differences, dtype=np.float64), np.random.default_rng(0)
    means = [values[generator.integers(values.size, size=values.size)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _exact(base: Record, found: Record) -> Iterator[Finding]:
    for key in EXACT:
        old, new = number(base, key), number(found, key)
        if old is None or old == new:
            continue
        if new is None:
            yield Finding(f"{key}: {old:.12g} in the baseline, not measured here")
        else:
            yield Finding(f"{key}: {old:.12g} -> {new:.12g}; update the baseline if intended")


def _fidelity(base: Record, found: Record) -> Iterator[Finding]:
    for key, (tolerance, unit) in FIDELITY.items():
        old, new = base.per_seed.get(key, []), found.per_seed.get(key, [])
        if len(old) != len(new) and old:
            yield Finding(f"{key}: cannot compare, the baseline has {len(old)} seeds and this record {len(new)}")
            continue
        differences = [after - before for before, after in zip(old, new, strict=False)]  # more than the baseline: new
        if not differences or sum(differences) / len(differences) >= -tolerance:
            continue
        low, high = interval(differences)
        if high < -tolerance:
            yield Finding(
                f"{key}: the mean over {len(differences)} seeds changes by {low:+.3f} to {high:+.3f} {unit} "
                f"({CONFIDENCE:.0%} bootstrap), tolerance -{tolerance} {unit}"
            )


def _speed(base: Record, found: Record, rerun: Record | None) -> Iterator[Finding]:
    for key in suspects(base, found):
        ratio, old, first = SPEED[key], number(base, key), number(found, key)
        rerun_failed = rerun is not None and rerun.outcome == "failed"
        second = None if rerun is None or rerun_failed else number(rerun, key)
        assert old is not None
        assert first is not None
        change = f"{key}: {old:.3g} -> {first:.3g} ({first / old - 1:+.1%}), tolerance {ratio.tolerance:.0%}"
        if second is None:
            yield Finding(f"{change}; {'the re-run failed' if rerun_failed else 'not re-run'}")
        elif ratio.is_suspect(old, ratio.better(first, second)):
            yield Finding(f"{change}; confirmed by a re-run, {second:.3g}")
        else:
            yield Finding(f"{change}; not confirmed by a re-run, {second:.3g}", regression=False)

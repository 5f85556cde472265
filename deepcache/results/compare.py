"""A record against its baseline: exact counts, fidelity seed by seed, ratios of times, and the conditions for it.

Absolute times belong to a machine, and aggregates such as FID have no pairs: neither is compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from deepcache.results.layout import Scalar
from deepcache.results.record import COUNTS, Record
from deepcache.results.text import plain

REGRESSION, INCOMPARABLE, NOTE = "regression", "cannot be compared", "note"

# Two records of one key are the same row only if they were run alike; seeds of other runs have no counterpart.
RUN = ("model", "scheduler", "branch", "order", "first_seed", "num_samples", "num_steps", "batch_size")
# A number depends on these settings. The machine is not among them: pairs and ratios do not depend on the machine.
CONDITIONS = (
    "weights", "device", "dtype", "num_threads", "extractor", "clip", "perceptual", "guidance_scale",
    "uncached_steps", "prompts",
)  # fmt: skip
EXPERIMENTS, UNTIMED = "experiments", "speed"
ALLOWANCES = (EXPERIMENTS, UNTIMED, *CONDITIONS)
HELP = (
    "gate the rest although WHAT is missing or differs: the `experiments` of the baseline that were not run, `speed` "
    f"that was not measured, or a setting ({', '.join(CONDITIONS)}); may be given several times"
)
CONFIDENCE = 0.99
NUM_NAMED = 3  # seeds that one finding names


@dataclass(frozen=True)
class Tolerance:
    """By how much a metric of single seeds may fall; higher values are better.

    A row fails if the whole bootstrap interval of the change of its mean lies below -`mean`, or if a single seed falls
    by more than `seed`: the noise of a machine does neither, and every destroyed image does. A seed whose value stays
    above `same` shows the same image, however far it falls.
    """

    unit: str
    mean: float
    seed: float
    same: float = math.inf

    def fall(self, before: float, after: float) -> float:
        """Return how far the value of a seed fell below its old value, or below `same` where that is less."""
        return min(before, self.same) - min(after, self.same)


# What the noise of a machine does was measured on all benches, recorded on two machines: 192 rows and 16,303 seeds of
# PSNR, 96 rows and 3,140 seeds of CLIP score.
# PSNR: 99.9% of the seeds differ by less than 0.01 dB, and below 40 dB none by more than 0.45 dB. Above 40 dB noise may
# turn a single code of mini-ldm's autoencoder, which is the whole difference of an image there: 80 dB become 46 dB.
# An allowed fall of 3 dB lets the squared error double, counted from 40 dB. A destroyed image falls by all its PSNR.
# CLIP score: no seed differs by more than 0.18 points. Noise, grey or another prompt's image in place of four samples
# of mini-sd costs at least 32 points each; all rows of the paper's Tables 13 and 14 lie within 2 points.
FIDELITY = {"psnr_db": Tolerance("dB", mean=0.1, seed=3.0, same=40.0), "clip_score": Tolerance("points", 0.1, seed=3.0)}


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times that are measured in turns in one process, and the share of it that may be lost."""

    tolerance: float
    higher_is_better: bool

    def is_suspect(self, base: float, found: float) -> bool:
        """Whether the ratio is worse than the baseline's by more than the tolerance."""
        limit = base * (1 - self.tolerance if self.higher_is_better else 1 + self.tolerance)
        return found < limit if self.higher_is_better else found > limit

    def better(self, first: float, second: float) -> float:
        """Return the better of two ratios."""
        return max(first, second) if self.higher_is_better else min(first, second)


SPEED = {"speedup": Ratio(0.15, higher_is_better=True), "shallow_share": Ratio(0.10, higher_is_better=False)}


@dataclass(frozen=True)
class Finding:
    """Something that the gate says.

    A regression fails the gate. Records that cannot be compared fail the gate too, unless `allow` is allowed.
    """

    text: str
    kind: str = REGRESSION
    allow: str = ""


def differences(base: Record, found: Record, names: Iterable[str]) -> dict[str, str]:
    """Return a sentence for each of these settings that differs between the records."""
    pairs = ((name, base.settings.get(name), found.settings.get(name)) for name in names)
    return {name: f"{name} is {_value(new)} instead of {_value(old)}" for name, old, new in pairs if old != new}


def number(record: Record, name: str) -> float | None:
    """Return the metric or the setting of that name; None where the record has no such number."""
    value = record.metrics.get(name, record.settings.get(name))
    return None if value is None or isinstance(value, str) else value


def is_gated(record: Record) -> bool:
    """Whether a record of a baseline has anything that is compared."""
    return any(number(record, name) is not None for name in (*COUNTS, *SPEED)) or any(
        map(record.per_seed.get, FIDELITY)
    )


def compare(base: Record, found: Record, rerun: Record | None = None) -> list[Finding]:
    """Return changed counts, and falls of fidelity or speed beyond their tolerance, between two records of one row.

    Args:
        base: the record of the baseline.
        found: the record of the run.
        rerun: the record of the same test when it was run once more; for a ratio that looks lost, the better of both
            runs counts.
    """
    return [*_exact(base, found), *_fidelity(base, found), *_speed(base, found, rerun)]


def suspects(base: Record, found: Record) -> list[str]:
    """Return the names of the ratios that are worse than the baseline's by more than their tolerance."""
    pairs = ((name, number(base, name), number(found, name)) for name in SPEED)
    return [
        name for name, old, new in pairs if old is not None and new is not None and SPEED[name].is_suspect(old, new)
    ]


def untimed(base: Record, found: Record) -> bool:
    """Whether the baseline holds a ratio that the record does not."""
    return any(number(base, name) is not None and number(found, name) is None for name in SPEED)


def interval(changes: Sequence[float]) -> tuple[float, float]:
    """Return the percentile-bootstrap interval of the mean of paired differences at `CONFIDENCE`, from a fixed seed.

    Source: An Introduction to the Bootstrap (Efron and Tibshirani, 1993), chapter 13.
    """
    import numpy as np  # slow to import, and a pytest session without a gate needs none of it

    from deepcache.metrics.statistics import bootstrap

    return bootstrap(np.mean, np.asarray(changes, dtype=np.float64), (1 - CONFIDENCE) / 2)


def _exact(base: Record, found: Record) -> Iterator[Finding]:
    for name in COUNTS:
        old, new = number(base, name), number(found, name)
        if old is None or old == new:
            continue
        if new is None:
            yield Finding(f"{name}: {old:.12g} in the baseline, not measured here")
        else:
            yield Finding(f"{name}: {old:.12g} -> {new:.12g}; update the baseline if intended")


def _fidelity(base: Record, found: Record) -> Iterator[Finding]:
    for name, tolerance in FIDELITY.items():
        old, new = base.per_seed.get(name, []), found.per_seed.get(name, [])
        if not old:  # the record may have more than the baseline
            continue
        if len(old) != len(new):
            yield Finding(f"{name}: the baseline has {len(old)} seeds and this record {len(new)}", INCOMPARABLE)
            continue
        yield from _mean(name, tolerance, [after - before for before, after in zip(old, new, strict=True)])
        yield from _each_seed(name, tolerance, base, list(zip(old, new, strict=True)))


def _mean(name: str, tolerance: Tolerance, changes: Sequence[float]) -> Iterator[Finding]:
    if sum(changes) / len(changes) >= -tolerance.mean:
        return
    low, high = interval(changes)
    if high < -tolerance.mean:
        yield Finding(
            f"{name}: the mean over {len(changes)} seeds changes by {low:+.3f} to {high:+.3f} {tolerance.unit} "
            f"({CONFIDENCE:.0%} bootstrap), tolerance -{tolerance.mean} {tolerance.unit}"
        )


def _each_seed(
    name: str, tolerance: Tolerance, base: Record, pairs: Sequence[tuple[float, float]]
) -> Iterator[Finding]:
    falls = [tolerance.fall(before, after) for before, after in pairs]
    fallen = sorted((i for i, fall in enumerate(falls) if fall > tolerance.seed), key=lambda i: -falls[i])
    if not fallen:
        return
    first_seed = number(base, "first_seed") or 0
    named = [f"seed {first_seed + i:.0f} {pairs[i][0]:.4g} -> {pairs[i][1]:.4g}" for i in fallen[:NUM_NAMED]]
    more = f" and {len(fallen) - NUM_NAMED} more" if len(fallen) > NUM_NAMED else ""
    count = f"{len(fallen)} of {len(pairs)} seeds"
    yield Finding(f"{name}: {count} fall by more than {tolerance.seed:g} {tolerance.unit}: {', '.join(named)}{more}")


def _speed(base: Record, found: Record, rerun: Record | None) -> Iterator[Finding]:
    for name in suspects(base, found):
        ratio, old, first = SPEED[name], number(base, name), number(found, name)
        rerun_failed = rerun is not None and rerun.outcome != "passed"
        second = None if rerun is None or rerun_failed else number(rerun, name)
        assert old is not None
        assert first is not None
        change = f"{name}: {old:.3g} -> {first:.3g} ({first / old - 1:+.1%}), tolerance {ratio.tolerance:.0%}"
        if second is None:
            yield Finding(f"{change}; {'the re-run failed' if rerun_failed else 'not re-run'}")
        elif ratio.is_suspect(old, ratio.better(first, second)):
            yield Finding(f"{change}; confirmed by a re-run, {second:.3g}")
        else:
            yield Finding(f"{change}; not confirmed by a re-run, {second:.3g}", NOTE)


def _value(value: Scalar) -> str:
    return "missing" if value is None else plain(str(value))

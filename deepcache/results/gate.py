"""The gate: a run's records against a baseline's, and what the difference means for CI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deepcache.errors import DeepCacheError
from deepcache.results.compare import INCOMPARABLE, NOTE, REGRESSION, Finding, compare, is_gated, untimed
from deepcache.results.conditions import CONDITIONS, EXPERIMENTS, METHOD, RUN, SPEED
from deepcache.results.record import Record, Scalar
from deepcache.results.text import plain

NUM_NAMED = 3  # records that one finding names
Key = tuple[Scalar, ...]


@dataclass(frozen=True)
class Verdict:
    """What the gate found, in sentences."""

    num_compared: int
    findings: tuple[Finding, ...]

    @property
    def regressions(self) -> list[str]:
        return self._of(REGRESSION)

    @property
    def incomparable(self) -> list[str]:
        return self._of(INCOMPARABLE)

    @property
    def notes(self) -> list[str]:
        return self._of(NOTE)

    @property
    def exit_code(self) -> int:
        """1 where something got worse, 2 where something cannot be compared, else 0."""
        return 1 if self.regressions else 2 if self.incomparable else 0

    def __str__(self) -> str:
        head = f"gate: {_count(self.num_compared, 'record')} compared, {_count(len(self.regressions), 'regression')}"
        if self.incomparable:
            head += f", {_count(len(self.incomparable), 'reason')} why the rest cannot be compared"
        lines = [f"{kind}: {text}" for kind in (REGRESSION, INCOMPARABLE, NOTE) for text in self._of(kind)]
        options = dict.fromkeys(f"--allow {finding.allow}" for finding in self.findings if finding.allow)
        hint = f"to compare the rest all the same: {' '.join(options)} (of pytest: --gate-allow)"
        return "\n".join([head, *lines, *([hint] if options else [])])

    def _of(self, kind: str) -> list[str]:
        return [finding.text for finding in self.findings if finding.kind == kind]


def method(record: Record) -> Key:
    """Which row it is, whatever seeds and steps it was run with."""
    return (record.experiment, record.row, *(record.settings.get(name) for name in METHOD))


def key(record: Record) -> Key:
    """By which a record finds its baseline."""
    return (*method(record), *(record.settings.get(name) for name in RUN))


def keyed(records: Iterable[Record], what: str) -> dict[Key, Record]:
    """A baseline's records by their key.

    Raises:
        DeepCacheError: two records of one key, which cannot be told apart, or the record of a test that did not pass;
            `what` names their source.
    """
    found: dict[Key, Record] = {}
    for record in records:
        if record.outcome != "passed":
            raise DeepCacheError(
                f"expected a baseline of passed records; in {what} {label(record)} {_said(record)}; run it again"
            )
        if found.setdefault(key(record), record) is not record:
            raise DeepCacheError(f"{what} holds {label(record)} twice; give each row a name of its own")
    return found


def label(record: Record) -> str:
    """For people: experiment, row, and the settings that tell rows of one name apart."""
    model, scheduler, branch, order = (record.settings.get(name) for name in METHOD)
    parts = [str(name) for name in (model, scheduler) if name is not None]
    parts += [f"{name} {value}" for name, value in (("branch", branch), ("order", order)) if value is not None]
    return plain(f"{record.experiment} / {record.row}" + f" ({', '.join(parts)})" * bool(parts))


def gate(
    baseline: Sequence[Record],
    results: Sequence[Record],
    reruns: Sequence[Record] = (),
    *,
    allow: Collection[str] = (),
) -> Verdict:
    """Compare what was run with the baseline.

    A record missing from an experiment that was run is a regression, and so is a test that did not pass. Of records
    with one key in `reruns` the last counts; one that passed there makes of a failure a note.

    Args:
        baseline: what to compare with.
        results: what was run.
        reruns: the same run once more, of all records or of some.
        allow: which of `ALLOWANCES` make a note of what else cannot be compared.

    Raises:
        DeepCacheError: the baseline holds a record twice, or one that did not pass.
    """
    bases = keyed(baseline, "the baseline")
    first: dict[Key, Record] = {}
    for record in results:
        first.setdefault(key(record), record)
    again = {key(record): record for record in reruns}
    pairs = {k: (base, first[k]) for k, base in bases.items() if k in first}
    comparable = {k: pair for k, pair in pairs.items() if not differences(*pair, set(CONDITIONS) - set(allow))}
    findings = [
        *_failed(results, again),
        *_repeated(results),
        *(
            Finding(f"{label(base)}: {found.text}", found.kind, found.allow)
            for k, (base, record) in comparable.items()
            for found in compare(base, record, again.get(k))
        ),
        *_otherwise(pairs.values()),
        *_absent(bases, first),
        *_untimed(comparable.values()),
        *_ungated([base for base, _ in comparable.values()]),
    ]
    if not comparable:
        findings.append(Finding("no record of the baseline can be compared with one of the results", INCOMPARABLE))
    return Verdict(len(comparable), tuple(_allowed(finding, allow) for finding in findings))


def differences(base: Record, found: Record, names: Iterable[str]) -> dict[str, str]:
    """What is said of each of these settings that differs."""
    pairs = ((name, base.settings.get(name), found.settings.get(name)) for name in names)
    return {name: f"{name} is {_value(new)} instead of {_value(old)}" for name, old, new in pairs if old != new}


def _allowed(finding: Finding, allow: Collection[str]) -> Finding:
    return Finding(f"{finding.text}; allowed", NOTE) if finding.allow and finding.allow in allow else finding


def _failed(results: Sequence[Record], again: Mapping[Key, Record]) -> Iterator[Finding]:
    """Only a test that passed is a pass: neither an error nor a skipped test nor an expected failure is."""
    for record in results:
        if record.outcome == "passed":
            continue
        second = again.get(key(record))
        if second is not None and second.outcome == "passed":
            yield Finding(f"{label(record)}: {_said(record)}, and passed when run again", NOTE)
        else:
            yield Finding(f"{label(record)}: {_said(record)}")


def _said(record: Record) -> str:
    return "failed" if record.outcome == "failed" else f"has the outcome {plain(record.outcome)!r}, not 'passed'"


def _repeated(results: Sequence[Record]) -> Iterator[Finding]:
    """Only the first of them is compared, so that this must not pass."""
    count = Counter(key(record) for record in results)
    for record in {key(record): record for record in results}.values():
        if count[key(record)] > 1:
            text = f"{label(record)}: recorded {count[key(record)]} times; give each row a name of its own"
            yield Finding(text, INCOMPARABLE)


def _otherwise(pairs: Iterable[tuple[Record, Record]]) -> Iterator[Finding]:
    """Conditions that differ, each once with the records that it is true of."""
    found: dict[tuple[str, str], list[Record]] = {}
    for base, record in pairs:
        for name, text in differences(base, record, CONDITIONS).items():
            found.setdefault((name, text), []).append(base)
    for (name, text), records in found.items():
        yield Finding(f"{text}: {_named(records)}", INCOMPARABLE, name)


def _absent(bases: Mapping[Key, Record], found: Mapping[Key, Record]) -> Iterator[Finding]:
    """Records that only one side has: missing, run otherwise, new; experiments that were not run."""
    run = {record.experiment for record in found.values()}
    unmatched = [record for k, record in found.items() if k not in bases]
    others = {method(record): record for record in unmatched}
    missing = [record for k, record in bases.items() if k not in found]
    otherwise: dict[str, list[Record]] = {}
    for base in missing:
        other = others.get(method(base))
        if other is not None:
            otherwise.setdefault(", ".join(differences(base, other, RUN).values()), []).append(base)
        elif base.experiment in run:
            yield Finding(f"{label(base)}: missing; update the baseline if intended")
    for text, records in otherwise.items():
        yield Finding(f"{text}: {_named(records)}; run them as the baseline was", INCOMPARABLE)
    for experiment, number in Counter(base.experiment for base in missing if base.experiment not in run).items():
        yield Finding(f"{plain(experiment)}: not run ({_count(number, 'record')})", INCOMPARABLE, EXPERIMENTS)
    tried = {method(base) for base in missing}
    for record in unmatched:
        if method(record) not in tried:
            yield Finding(f"{label(record)}: new, not in the baseline", NOTE)


def _untimed(pairs: Collection[tuple[Record, Record]]) -> Iterator[Finding]:
    missing = [base for base, record in pairs if untimed(base, record)]
    if missing:
        yield Finding(f"speed not measured: {_named(missing)}", INCOMPARABLE, SPEED)


def _ungated(bases: Iterable[Record]) -> Iterator[Finding]:
    """Rows that can never fail but by their own test, one finding an experiment, with all their names."""
    found: dict[str, list[str]] = {}
    for base in bases:
        if not is_gated(base):
            found.setdefault(base.experiment, []).append(base.row)
    for experiment, rows in found.items():
        names = plain("; ".join(dict.fromkeys(rows)))
        yield Finding(f"{plain(experiment)}: nothing is gated of {_count(len(rows), 'record')}: {names}", NOTE)


def _named(records: Sequence[Record]) -> str:
    more = f" and {len(records) - NUM_NAMED} more" if len(records) > NUM_NAMED else ""
    return f"{_count(len(records), 'record')} ({'; '.join(map(label, records[:NUM_NAMED]))}{more})"


def _value(value: Scalar) -> str:
    return "missing" if value is None else plain(str(value))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"

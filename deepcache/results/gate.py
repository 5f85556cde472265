"""The gate: the records of a run against those of a baseline, and the exit code for CI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deepcache.errors import DeepCacheError
from deepcache.results.compare import (
    CONDITIONS,
    EXPERIMENTS,
    INCOMPARABLE,
    NOTE,
    REGRESSION,
    RUN,
    UNTIMED,
    Finding,
    compare,
    differences,
    is_gated,
    untimed,
)
from deepcache.results.record import Record
from deepcache.results.text import plain

NUM_NAMED = 3  # records that one finding names
Identity = tuple[Hashable, ...]
_SHOWN = ("model", "scheduler", "branch", "order")  # settings that a person tells rows apart by


@dataclass(frozen=True)
class Verdict:
    """How many records were compared, and what was found."""

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
        hint = f"to compare the rest all the same: {' '.join(options)} (of pytest: --paper-gate-allow)"
        return "\n".join([head, *lines, *([hint] if options else [])])

    def _of(self, kind: str) -> list[str]:
        return [finding.text for finding in self.findings if finding.kind == kind]


def row(record: Record) -> Identity:
    """Return the table and the key, which say what row a record is, whatever seeds and steps it was run with."""
    return (record.table.name, tuple(sorted(record.key.items(), key=lambda item: item[0])))


def identity(record: Record) -> Identity:
    """Return the row and the settings of its run, by which a record finds its baseline."""
    return (*row(record), *(record.settings.get(name) for name in RUN))


def by_identity(records: Iterable[Record], what: str) -> dict[Identity, Record]:
    """Return the records of a baseline by their identity.

    Args:
        records: the records.
        what: names their source in an error.

    Raises:
        DeepCacheError: two records cannot be told apart, or a record is of a test that did not pass.
    """
    found: dict[Identity, Record] = {}
    for record in records:
        if record.outcome != "passed":
            raise DeepCacheError(
                f"expected a baseline of passed records; in {what} {label(record)} {_said(record)}; run it again"
            )
        if found.setdefault(identity(record), record) is not record:
            raise DeepCacheError(f"{what} holds {label(record)} twice; give each row a key of its own")
    return found


def label(record: Record) -> str:
    """Name a record for people: the table, the row's label, and settings that tell rows of one label apart."""
    model, scheduler, branch, order = (record.settings.get(name) for name in _SHOWN)
    parts = [str(name) for name in (model, scheduler) if name is not None]
    parts += [f"{name} {value}" for name, value in (("branch", branch), ("order", order)) if value is not None]
    return plain(f"{record.table.name} / {record.label}" + f" ({', '.join(parts)})" * bool(parts))


def gate(
    baseline: Sequence[Record],
    results: Sequence[Record],
    reruns: Sequence[Record] = (),
    *,
    allow: Collection[str] = (),
) -> Verdict:
    """Compare the records of a run with a baseline.

    A record is a regression if its test did not pass, if a count changed, if fidelity or speed got worse (`compare`),
    or if it is missing although other rows of its table were run. A failure becomes a note if the record passed when it
    was run again.

    Args:
        baseline: the records to compare with.
        results: the records of the run.
        reruns: the records of the same run once more, of all tests or of some; of equal records the last counts.
        allow: those of `ALLOWANCES` that turn what cannot be compared into a note.

    Raises:
        DeepCacheError: the baseline holds a record twice, or the record of a test that did not pass.
    """
    bases = by_identity(baseline, "the baseline")
    first: dict[Identity, Record] = {}
    for record in results:
        first.setdefault(identity(record), record)
    again = {identity(record): record for record in reruns}
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


def _allowed(finding: Finding, allow: Collection[str]) -> Finding:
    return Finding(f"{finding.text}; allowed", NOTE) if finding.allow and finding.allow in allow else finding


def _failed(results: Sequence[Record], again: Mapping[Identity, Record]) -> Iterator[Finding]:
    """Find the tests that did not pass; an error, a skipped test and an expected failure are no pass either."""
    for record in results:
        if record.outcome == "passed":
            continue
        second = again.get(identity(record))
        if second is not None and second.outcome == "passed":
            yield Finding(f"{label(record)}: {_said(record)}, and passed when run again", NOTE)
        else:
            yield Finding(f"{label(record)}: {_said(record)}")


def _said(record: Record) -> str:
    return "failed" if record.outcome == "failed" else f"has the outcome {plain(record.outcome)!r}, not 'passed'"


def _repeated(results: Sequence[Record]) -> Iterator[Finding]:
    """Find records that stand there more than once: only the first is compared, so this must not pass."""
    count = Counter(map(identity, results))
    for each, record in {identity(record): record for record in results}.items():
        if count[each] > 1:
            text = f"{label(record)}: recorded {count[each]} times; give each row a key of its own"
            yield Finding(text, INCOMPARABLE)


def _otherwise(pairs: Iterable[tuple[Record, Record]]) -> Iterator[Finding]:
    """Find conditions that differ, and name each once with its records."""
    found: dict[tuple[str, str], list[Record]] = {}
    for base, record in pairs:
        for name, text in differences(base, record, CONDITIONS).items():
            found.setdefault((name, text), []).append(base)
    for (name, text), records in found.items():
        yield Finding(f"{text}: {_named(records)}", INCOMPARABLE, name)


def _absent(bases: Mapping[Identity, Record], found: Mapping[Identity, Record]) -> Iterator[Finding]:
    """Find records that only one side has: they are missing, were run otherwise, are new, or were not run at all."""
    run = {record.table.name for record in found.values()}
    unmatched = [record for k, record in found.items() if k not in bases]
    others = {row(record): record for record in unmatched}
    missing = [record for k, record in bases.items() if k not in found]
    otherwise: dict[str, list[Record]] = {}
    for base in missing:
        other = others.get(row(base))
        if other is not None:
            otherwise.setdefault(", ".join(differences(base, other, RUN).values()), []).append(base)
        elif base.table.name in run:
            yield Finding(f"{label(base)}: missing; update the baseline if intended")
    for text, records in otherwise.items():
        yield Finding(f"{text}: {_named(records)}; run them as the baseline was", INCOMPARABLE)
    for table, number in Counter(base.table.name for base in missing if base.table.name not in run).items():
        yield Finding(f"{table}: not run ({_count(number, 'record')})", INCOMPARABLE, EXPERIMENTS)
    tried = {row(base) for base in missing}
    for record in unmatched:
        if row(record) not in tried:
            yield Finding(f"{label(record)}: new, not in the baseline", NOTE)


def _untimed(pairs: Collection[tuple[Record, Record]]) -> Iterator[Finding]:
    """Find records without a ratio of times that the baseline holds."""
    missing = [base for base, record in pairs if untimed(base, record)]
    if missing:
        yield Finding(f"speed not measured: {_named(missing)}", INCOMPARABLE, UNTIMED)


def _ungated(bases: Iterable[Record]) -> Iterator[Finding]:
    """Find rows that can fail through their own test alone, and name all rows of a table in one finding."""
    found: dict[str, list[str]] = {}
    for base in bases:
        if not is_gated(base):
            found.setdefault(base.table.name, []).append(base.label)
    for table, rows in found.items():
        names = plain("; ".join(dict.fromkeys(rows)))
        yield Finding(f"{table}: nothing is gated of {_count(len(rows), 'record')}: {names}", NOTE)


def _named(records: Sequence[Record]) -> str:
    more = f" and {len(records) - NUM_NAMED} more" if len(records) > NUM_NAMED else ""
    return f"{_count(len(records), 'record')} ({'; '.join(map(label, records[:NUM_NAMED]))}{more})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"

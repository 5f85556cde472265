"""The gate: the records of a run against those of a baseline, the exit code for CI, and the baseline's file."""

from __future__ import annotations

import json
import statistics
from collections import ChainMap, Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from deepcache.errors import DeepCacheError
from deepcache.files import write_text
from deepcache.results.compare import CONDITIONS, FIDELITY, RUN, SPEED, Finding, Kind, compare, differences, numbers
from deepcache.results.layout import Layout
from deepcache.results.record import COUNTS, Record, read
from deepcache.results.text import plain, some

T = TypeVar("T")
Identity = tuple[Hashable, ...]
_ENVIRONMENT = ("machine", "torch", "diffusers")  # a changed number may come from these
_STEADY = 3  # the median of so many runs is safe from one slow minute
_DIGITS = 4  # of values of single seeds, far below the tolerances


@dataclass(frozen=True)
class Verdict:
    """How many records were compared, what was found, and the options that would allow what cannot be compared."""

    num_compared: int
    regressions: list[str]
    incomparable: list[str]
    notes: list[str]
    options: list[str]

    @property
    def exit_code(self) -> int:
        """1 where something got worse, 2 where something cannot be compared, else 0."""
        return 1 if self.regressions else 2 if self.incomparable else 0

    def __str__(self) -> str:
        head = f"gate: {_count(self.num_compared, 'record')} compared, {_count(len(self.regressions), 'regression')}"
        if self.incomparable:
            head += f", {_count(len(self.incomparable), 'reason')} why the rest cannot be compared"
        found = zip(Kind, (self.regressions, self.incomparable, self.notes), strict=True)
        lines = [f"{kind.value}: {text}" for kind, texts in found for text in texts]
        hint = f"to compare the rest all the same: {' '.join(self.options)} (of pytest: --paper-gate-allow)"
        return "\n".join([head, *lines, *([hint] if self.options else [])])


def identity(record: Record) -> Identity:
    """Return the table and the key, which name the row, and the settings of its run: what tells records apart."""
    return (record.table.name, frozenset(record.key.items()), *(record.settings.get(name) for name in RUN))


def by_identity(records: Iterable[Record], what: str) -> dict[Identity, Record]:
    """Return the records of a baseline by their identity; refuse two of one identity, and a test that did not pass."""
    found: dict[Identity, Record] = {}
    for record in records:
        if record.outcome != "passed":
            said = f"in {what} {label(record)} {_said(record)}"
            raise DeepCacheError(f"expected a baseline of passed records; {said}; run it again")
        if found.setdefault(identity(record), record) is not record:
            raise DeepCacheError(f"{what} holds {label(record)} twice; give each row a key of its own")
    return found


def label(record: Record) -> str:
    """Name a record for people: the table, the row's label, and settings that tell rows of one label apart."""
    shown = (("model", ""), ("scheduler", ""), ("branch", "branch "), ("order", "order "))
    parts = [f"{word}{record.settings[name]}" for name, word in shown if record.settings.get(name) is not None]
    return plain(f"{record.table.name} / {record.label}" + f" ({', '.join(parts)})" * bool(parts))


def gate(
    baseline: Sequence[Record], results: Sequence[Record], reruns: Sequence[Record] = (), *, allow: Collection[str] = ()
) -> Verdict:
    """Compare the records of a run with a baseline.

    A record is a regression if its test passed neither here nor when run again, if a count changed, if fidelity or
    speed got worse (`compare`), or if it is missing although other rows of its table were run.

    Args:
        baseline, results: the records of the baseline, which `by_identity` checks, and of the run.
        reruns: the records of the same run once more, of all tests or of some; of equal records the last counts.
        allow: those of `ALLOWANCES` that turn what cannot be compared into a note.
    """
    bases = by_identity(baseline, "the baseline")
    found = defaultdict(list)
    for record in results:
        found[identity(record)].append(record)
    again = {identity(record): record for record in reruns}
    pairs = {k: (base, found[k][0]) for k, base in bases.items() if k in found}
    comparable = {k: pair for k, pair in pairs.items() if not differences(*pair, set(CONDITIONS) - set(allow))}
    findings = [
        *_failed(results, again),
        *(
            Finding(f"{label(same[-1])}: recorded {len(same)} times; give each row a key of its own", Kind.INCOMPARABLE)
            for same in found.values()
            if len(same) > 1  # only the first is compared, so this must not pass
        ),
        *(
            replace(change, text=f"{label(base)}: {change.text}")
            for k, (base, record) in comparable.items()
            for change in _changes(base, record, again.get(k))
        ),
        *_in_one(
            (Finding(text, Kind.INCOMPARABLE, name), base)
            for base, record in pairs.values()
            for name, text in differences(base, record, CONDITIONS).items()
        ),
        *_absent(bases, {k: same[0] for k, same in found.items()}),
        *_in_one(
            (Finding("speed not measured", Kind.INCOMPARABLE, "speed"), base)
            for base, record in comparable.values()
            if numbers(base, SPEED).keys() - numbers(record, SPEED).keys()
        ),
        *_ungated(base for base, _ in comparable.values()),
    ]
    if not comparable:
        findings.append(Finding("no record of the baseline can be compared with one of the results", Kind.INCOMPARABLE))
    findings = [Finding(f"{each.text}; allowed", Kind.NOTE) if each.allow in allow else each for each in findings]
    kinds = [[each.text for each in findings if each.kind == kind] for kind in Kind]
    options = dict.fromkeys(f"--allow {each.allow}" for each in findings if each.allow)
    regressions, incomparable, notes = kinds
    return Verdict(len(comparable), regressions, incomparable, notes, list(options))


def _changes(base: Record, record: Record, again: Record | None) -> Iterator[Finding]:
    """Find what changed; where only the second run of a test passed, its own numbers have to hold as well."""
    found = [*compare(base, record, again)]
    if again is not None and record.outcome != "passed" == again.outcome:
        if differences(record, again, CONDITIONS):
            found.append(Finding("passed only when run again, under other settings", Kind.INCOMPARABLE))
        untimed = {name: value for name, value in base.metrics.items() if name not in SPEED}
        found += compare(replace(base, metrics=untimed), again)  # a time counts only if both runs are slow
    yield from dict.fromkeys(found)


def _failed(results: Sequence[Record], again: Mapping[Identity, Record]) -> Iterator[Finding]:
    """Find the tests that did not pass; an error, a skipped test and an expected failure are no pass either."""
    for record in results:
        if record.outcome != "passed" and again.get(identity(record), record).outcome == "passed":
            yield Finding(f"{label(record)}: {_said(record)}, and passed when run again", Kind.NOTE)
        elif record.outcome != "passed":
            yield Finding(f"{label(record)}: {_said(record)}")


def _said(record: Record) -> str:
    return "failed" if record.outcome == "failed" else f"has the outcome {plain(record.outcome)!r}, not 'passed'"


def _in_one(found: Iterable[tuple[Finding, Record]], remedy: str = "") -> Iterator[Finding]:
    """Make one finding, which names the records, of equal findings on several records."""
    alike = defaultdict(list)
    for finding, record in found:
        alike[finding].append(label(record))
    for finding, labels in alike.items():
        named = f"{_count(len(labels), 'record')} ({some(labels, '; ')})"
        yield replace(finding, text=f"{finding.text}: {named}{remedy}")


def _absent(bases: Mapping[Identity, Record], found: Mapping[Identity, Record]) -> Iterator[Finding]:
    """Find records that only one side has: they are missing, were run otherwise, are new, or were not run at all."""
    run = {record.table.name for record in found.values()}
    missing = {k: base for k, base in bases.items() if k not in found}
    others = {k[:2]: record for k, record in found.items() if k not in bases}  # of rows, however they were run
    otherwise = []
    for k, base in missing.items():
        if other := others.get(k[:2]):
            text = ", ".join(differences(base, other, RUN).values())
            otherwise.append((Finding(text, Kind.INCOMPARABLE), base))
        elif base.table.name in run:
            yield Finding(f"{label(base)}: missing; update the baseline if intended")
    yield from _in_one(otherwise, "; run them as the baseline was")
    for table, times in Counter(base.table.name for base in missing.values() if base.table.name not in run).items():
        yield Finding(f"{table}: not run ({_count(times, 'record')})", Kind.INCOMPARABLE, "experiments")
    tried = {k[:2] for k in missing}
    for k, record in found.items():
        if k not in bases and k[:2] not in tried:
            yield Finding(f"{label(record)}: new, not in the baseline", Kind.NOTE)


def _ungated(bases: Iterable[Record]) -> Iterator[Finding]:
    """Find rows that can fail through their own test alone, and name all rows of a table in one finding."""
    found = defaultdict(list)
    for base in bases:
        if not numbers(base, (*COUNTS, *SPEED)) and not any(map(base.per_seed.get, FIDELITY)):
            found[base.table.name].append(base.label)
    for table, rows in found.items():
        names = plain("; ".join(dict.fromkeys(rows)))
        yield Finding(f"{table}: nothing is gated of {_count(len(rows), 'record')}: {names}", Kind.NOTE)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def update(path: Path, runs: Sequence[Sequence[Record]]) -> str:
    """Replace the experiments of these runs in a baseline, and return a sentence that says what was written.

    The baseline keeps its other experiments, and of each record only what is gated, so that a committed file stays
    small. It takes the median over the runs for each ratio of times, and everything else from the first run. Each run
    must hold the same records, all of tests that passed, made under the same conditions.
    """
    identified = [by_identity(run, "the results") for run in runs]
    for k, record in ChainMap(*identified).items():  # of any run, as the first that has it tells it
        for run in identified:
            if k not in run:
                raise DeepCacheError(f"expected the same records in all runs; {label(record)} is not in each")
            for text in differences(record, run[k], CONDITIONS).values():
                raise DeepCacheError(f"expected runs under the same conditions; of {label(record)} {text}")
    new = [_slim(record, [run[k] for run in identified]) for k, record in identified[0].items()]
    mine = {record.table.name for record in new}
    kept = [record for record in read(path) if record.table.name not in mine] if path.exists() else []
    entries = [{k: v for k, v in record.as_dict().items() if v not in ([], "")} for record in (*kept, *new)]
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    write_text(path, f'{{"deepcache":[\n{lines}\n]}}\n')
    written = f"written: {path}, {len(new)} records of {', '.join(sorted(mine))}; {len(kept)} of other experiments kept"
    timed = any(record.metrics.keys() & SPEED for record in new)
    hint = f"\ntimes of {len(runs)} of {_STEADY} runs: the median of {_STEADY} results files is steadier"
    return written + hint * (timed and len(runs) < _STEADY)


def _slim(record: Record, runs: Sequence[Record]) -> Record:
    """Return what is gated of a record, with the median of its ratios over the runs."""
    ratios = {name: [ratio for run in runs for ratio in numbers(run, [name]).values()] for name in SPEED}
    medians = {name: statistics.median(values) for name, values in ratios.items() if values}
    return replace(
        record,
        table=Layout(record.table.name),
        test="",
        settings=_only((*RUN, *CONDITIONS, *COUNTS), record.settings),
        metrics=_only((*COUNTS, *SPEED), {**record.metrics, **medians}),
        environment=_only(_ENVIRONMENT, record.environment),
        per_seed={
            k: [round(value, _DIGITS) for value in values] for k, values in _only(FIDELITY, record.per_seed).items()
        },
        pictures=[],
    )


def _only(names: Iterable[str], values: Mapping[str, T]) -> dict[str, T]:
    return {name: values[name] for name in names if name in values}

"""The gate: a run's records against a baseline's, and what the difference means for CI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from deepcache.errors import DeepCacheError
from deepcache.results.compare import Finding, compare, untimed
from deepcache.results.record import Record, Scalar

METHOD = ("model", "scheduler", "branch", "order")  # settings that tell apart rows of one name
RUN = ("first_seed", "num_samples", "num_steps", "batch_size")  # settings that a comparison must have in common
Key = tuple[Scalar, ...]


@dataclass(frozen=True)
class Verdict:
    """What the gate found, in sentences; `failed` if one is a regression."""

    num_compared: int
    findings: tuple[Finding, ...]

    @property
    def regressions(self) -> list[str]:
        return [finding.text for finding in self.findings if finding.regression]

    @property
    def notes(self) -> list[str]:
        return [finding.text for finding in self.findings if not finding.regression]

    @property
    def failed(self) -> bool:
        return bool(self.regressions)

    def __str__(self) -> str:
        def count(number: int, noun: str) -> str:
            return f"{number} {noun}{'s' * (number != 1)}"

        head = f"gate: {count(self.num_compared, 'record')} compared, {count(len(self.regressions), 'regression')}"
        lines = [f"regression: {text}" for text in self.regressions] + [f"note: {text}" for text in self.notes]
        return "\n".join([head, *lines])


def method(record: Record) -> Key:
    """Which row it is, whatever seeds and steps it was run with."""
    return (record.experiment, record.row, *(record.settings.get(name) for name in METHOD))


def key(record: Record) -> Key:
    """By which a record finds its baseline."""
    return (*method(record), *(record.settings.get(name) for name in RUN))


def keyed(records: Iterable[Record], what: str) -> dict[Key, Record]:
    """Records by their key.

    Raises:
        DeepCacheError: two records of one key, which cannot be told apart; `what` names their source.
    """
    found: dict[Key, Record] = {}
    for record in records:
        if found.setdefault(key(record), record) is not record:
            raise DeepCacheError(f"{what} holds {label(record)} twice; give each row a name of its own")
    return found


def label(record: Record) -> str:
    """For people: experiment, row, and the settings that tell rows of one name apart."""
    model, scheduler, branch, order = (record.settings.get(name) for name in METHOD)
    parts = [str(name) for name in (model, scheduler) if name is not None]
    parts += [f"{name} {value}" for name, value in (("branch", branch), ("order", order)) if value is not None]
    return f"{record.experiment} / {record.row}" + f" ({', '.join(parts)})" * bool(parts)


def gate(baseline: Sequence[Record], results: Sequence[Record], reruns: Sequence[Record] = ()) -> Verdict:
    """Compare what was run with the baseline.

    An experiment of which nothing was run is left out with a note; a record missing from one that was run is a
    regression, and so is a comparison of nothing. Of records with one key in `reruns` the last counts; one that passed
    there makes of a failure a note.

    Raises:
        DeepCacheError: the baseline holds a record twice.
    """
    bases = keyed(baseline, "the baseline")
    first: dict[Key, Record] = {}
    for record in results:
        first.setdefault(key(record), record)
    again = {key(record): record for record in reruns}
    common = bases.keys() & first.keys()
    findings = [
        *_failed(results, again),
        *_repeated(results),
        *(
            Finding(f"{label(base)}: {found.text}", found.regression)
            for k, base in bases.items()
            if k in common
            for found in compare(base, first[k], again.get(k))
        ),
        *_absent(bases, first),
    ]
    if not common:
        findings.append(Finding("nothing compared: no record of the baseline is in the results"))
    num_untimed = sum(untimed(bases[k], first[k]) for k in common)
    if num_untimed:
        findings.append(Finding(f"speed not measured in {num_untimed} of {len(common)} records", regression=False))
    return Verdict(len(common), tuple(findings))


def _failed(results: Sequence[Record], again: dict[Key, Record]) -> Iterator[Finding]:
    for record in results:
        if record.outcome != "failed":
            continue
        second = again.get(key(record))
        if second is not None and second.outcome == "passed":
            yield Finding(f"{label(record)}: failed, and passed when run again", regression=False)
        else:
            yield Finding(f"{label(record)}: failed")


def _repeated(results: Sequence[Record]) -> Iterator[Finding]:
    """Only the first of them is compared, so that this must not pass."""
    count = Counter(key(record) for record in results)
    for record in {key(record): record for record in results}.values():
        if count[key(record)] > 1:
            yield Finding(f"{label(record)}: cannot compare, recorded {count[key(record)]} times; name each row apart")


def _absent(bases: dict[Key, Record], found: dict[Key, Record]) -> Iterator[Finding]:
    """Records that only one side has: missing, run otherwise, new; experiments that were not run."""
    run = {record.experiment for record in found.values()}
    unmatched = [record for k, record in found.items() if k not in bases]
    otherwise = {method(record): record for record in unmatched}
    missing = [record for k, record in bases.items() if k not in found]
    for base in missing:
        other = otherwise.get(method(base))
        if other is not None:
            yield Finding(f"{label(base)}: cannot compare, {_differences(base, other)}; run it as the baseline was")
        elif base.experiment in run:
            yield Finding(f"{label(base)}: missing; update the baseline if intended")
    for experiment, number in Counter(base.experiment for base in missing if base.experiment not in run).items():
        yield Finding(f"{experiment}: not run ({number} records)", regression=False)
    tried = {method(base) for base in missing}
    for record in unmatched:
        if method(record) not in tried:
            yield Finding(f"{label(record)}: new, not in the baseline", regression=False)


def _differences(base: Record, found: Record) -> str:
    pairs = ((name, base.settings.get(name), found.settings.get(name)) for name in RUN)
    return ", ".join(f"{name} is {new}, the baseline's {old}" for name, old, new in pairs if old != new)

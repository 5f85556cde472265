"""One generation: its step, the features of its last full steps, and what the user can read about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from deepcache.cache.prediction import Node, Polynomial
from deepcache.cache.timeline import Place, Values, goes_on
from deepcache.errors import DeepCacheError
from deepcache.plan import CachePlan, Interval
from deepcache.unets.family import Feature
from deepcache.unets.structure import Structure

Fingerprint = tuple[Any, ...]  # shapes, types and devices of a call's inputs, and which inputs there are
MOST_CALLS = 512  # of one step, if nobody says how many calls a step makes; a panorama of 8192 pixels makes 121


@dataclass(frozen=True)
class Generation:
    """What one generation did. A `Generation` holds neither features nor weights, and can be pickled.

    Attributes:
        num_steps: steps so far; a step calls the U-Net once, or several times, as where the conditional and the
            unconditional call are apart.
        full_steps: the steps with a full call, in ascending order.
        num_calls: calls of the U-Net.
        feature_bytes: the largest number of bytes of features that were kept at the same time.
    """

    num_steps: int
    full_steps: tuple[int, ...]
    num_calls: int
    feature_bytes: int
    _calls: CallMacs = field(repr=False, compare=False)

    @property
    def macs(self) -> int:
        """Mean MACs of the U-Net calls for one sample, by the paper's convention (`deepcache.costs.macs`).

        The MACs are those of the U-Net at the beginning of the generation, whatever was loaded into it later.

        Raises:
            UnsupportedUNetError: the U-Net does not run without data, as with xformers' attention.
        """
        return self._calls.mean()


class CallMacs:
    """Counts the MACs of a generation's calls when somebody asks for them."""

    def __init__(
        self,
        structure: Structure,
        examples: dict[Fingerprint, tuple[tuple[Any, ...], dict[str, Any]]],
        calls: Counter[tuple[Fingerprint, bool]],
        branch: int,
    ) -> None:
        self._structure, self._examples, self._calls, self._branch = structure, examples, calls, branch

    def mean(self) -> int:
        """Return the mean MACs of the calls.

        Raises:
            UnsupportedUNetError: the U-Net does not run without data.
        """
        from deepcache.costs.macs import counted  # sampling does without

        total = Fraction()
        for (fingerprint, is_full), number in self._calls.items():
            args, kwargs = self._examples[fingerprint]
            one = self._structure.once(fingerprint, partial(counted, args=args, kwargs=kwargs))
            total += number * (one.full() if is_full else one.shallow(self._branch))
        return round(total / self._calls.total())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the mean, or the error that says why it cannot be counted, instead of the U-Net's structure."""
        try:
            return CountedMacs, (self.mean(),)
        except DeepCacheError as error:
            return CountedMacs, (error,)


@dataclass(frozen=True)
class CountedMacs(CallMacs):
    """Mean MACs that were counted when a generation was pickled, or the error of that count."""

    found: int | DeepCacheError

    def mean(self) -> int:
        if isinstance(self.found, DeepCacheError):
            raise self.found
        return self.found


@dataclass
class Stream:
    """The calls at one turn of every step (say, the unconditional calls), and the features of their full steps."""

    fingerprint: Fingerprint = ()
    _polynomial: Polynomial | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The last full steps, the newest first."""
        return () if self._polynomial is None else self._polynomial.nodes

    @property
    def num_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for node in self.nodes for part in node.feature)

    def keep(self, nodes: Sequence[Node], fingerprint: Fingerprint) -> None:
        """Predict from these full steps from now on; their calls had this fingerprint."""
        self._polynomial, self.fingerprint = Polynomial.through(nodes), fingerprint

    def feature(self, step: int, timestep: Any) -> Feature:
        """Return the predicted feature of a shallow step; there must have been a full step."""
        assert self._polynomial is not None
        return self._polynomial(step, timestep)

    def clear(self) -> None:
        """Drop the features."""
        self._polynomial = None


@dataclass
class Facts:
    """What a generation has done so far, without its features."""

    structure: Structure
    num_steps: int = 0
    full_steps: list[int] = field(default_factory=list)
    calls: Counter[tuple[Fingerprint, bool]] = field(default_factory=Counter)
    feature_bytes: int = 0


@dataclass
class ActiveGeneration:
    """A generation that is under way.

    Attributes:
        plan: which steps are full.
        facts: what the generation has done so far.
        num_steps: the number of steps after which the features are dropped; None if the number is unknown.
        limit: the number of steps after which another step is refused; None if any number of steps may come.
        is_counted: whether `num_steps` is the number of the scheduler's timesteps from the first call on.
        calls_per_step: U-Net calls of every step; None if a step has as many calls as come at one timestep.
        stride: the distance in memory from one of the scheduler's timesteps to the next, in elements.
        timesteps: the scheduler's timesteps, which identify the generation if the calls get numbers or copies.
        alive: expires with the tensor whose elements the calls get; None if they get numbers or copies.
        step: the step of the last call; -1 before the first call.
        turn: the number of the last call within its step.
        offset: the offset in memory of the last call's timestep; None if the timestep was a number or a copy.
        values: the values of the last step's timestep; None if unknown.
        direction: the direction in which the timesteps go: -1 down, 1 up, 0 if unknown.
        streams: one stream for each turn.
    """

    plan: CachePlan | Interval
    facts: Facts
    num_steps: int | None
    limit: int | None
    is_counted: bool
    calls_per_step: int | None
    stride: int
    timesteps: Tensor | None
    alive: StorageWeakRef | None
    step: int = -1
    turn: int = 0
    offset: int | None = None
    values: Values | None = None
    direction: int = 0
    streams: list[Stream] = field(default_factory=list)

    @property
    def is_step_complete(self) -> bool:
        """Whether the last call was the last one of its step, as far as the number of calls is known."""
        return self.turn + 1 >= (self.calls_per_step or 1)

    @property
    def is_complete(self) -> bool:
        """Whether the generation has made the last call of a known number of steps."""
        return self.step + 1 == self.num_steps and self.is_step_complete

    def is_continued_at(self, found: Place) -> bool:
        """Return whether a call at this place belongs to this generation: the place is not before the last call's."""
        return self.offset is None or found.offset >= self.offset

    def is_over(self) -> bool:
        """Return whether no call can continue this generation, because its timesteps no longer exist."""
        return self.alive is not None and self.alive.expired()

    def advance(self, found: Place) -> Stream:
        """Count a call whose timestep has a place in memory, and return the stream of the call.

        Raises:
            DeepCacheError: the call can be neither another call of this step nor the first call of the next step.
        """
        if found.offset == self.offset:
            return self._repeat()
        if self.offset is not None and found.offset > self.offset + self.stride:
            self._disprove(f"{(found.offset - self.offset) // self.stride - 1} timesteps were passed over")
        stream = self._next()
        self.offset = found.offset
        return stream

    def count_on(self, found: Values | None) -> Stream:
        """Count a call whose timestep is a number or a copy, and return the stream of the call.

        Args:
            found: the value of the timestep; None if the timestep is on a device.

        Raises:
            DeepCacheError: the value does not go on from the last step's value, or there is a step too many.
        """
        if self.step >= 0 and not self.is_step_complete:
            return self._repeat()
        direction = self.direction
        if found is not None and self.values is not None:
            direction = goes_on(found, self.values, direction)
            if not direction:
                raise DeepCacheError(
                    f"expected a timestep that goes on from {_show(self.values)}, the last step's, got {_show(found)}; "
                    "if a new generation begins, call cache.reset() before it; if this is another call of the same "
                    "step, say calls_per_step to deepcache.cached; or pass elements of one tensor of timesteps"
                )
        stream = self._next()
        self.values, self.direction = found, direction
        return stream

    def _repeat(self) -> Stream:
        """Count another call of this step."""
        if self.turn + 1 == (self.calls_per_step or MOST_CALLS):
            raise DeepCacheError(
                f"expected at most {self.calls_per_step or MOST_CALLS} U-Net calls at one timestep, got another one; "
                "if every step makes more calls, say calls_per_step to deepcache.cached, or cache the pipeline instead "
                "of its U-Net; if a generation begins anew, or a call is repeated to measure it, call cache.reset() "
                "before"
            )
        self.turn += 1
        if self.turn == len(self.streams):
            self.streams.append(Stream())
        return self.streams[self.turn]

    def _next(self) -> Stream:
        """Count the first call of the next step."""
        expected = self.calls_per_step or len(self.streams)
        if self.step >= 0 and self.turn + 1 < expected:
            raise DeepCacheError(
                f"expected {expected} U-Net calls in step {self.step}, as in the steps before, got {self.turn + 1}, so "
                "that it cannot be told which call is which; call cache.reset() after a call to warm up and before "
                "each generation, or say calls_per_step to deepcache.cached"
            )
        if self.step + 1 == self.limit:
            raise DeepCacheError(
                f"expected {self.limit} steps in this generation, and this U-Net call would be one more; make the plan "
                "for as many steps as you sample; call cache.reset() before a new generation of a bare U-Net; and "
                "say calls_per_step to deepcache.cached where a step calls the U-Net twice"
            )
        if self.num_steps is not None and self.step + 1 >= self.num_steps:
            self._disprove("more followed")
        self.step, self.turn = self.step + 1, 0
        if not self.streams:
            self.streams.append(Stream())
        return self.streams[0]

    def _disprove(self, why: str) -> None:
        """Note that the number of U-Net calls is not the number of the scheduler's timesteps.

        Raises:
            DeepCacheError: the plan depends on that number.
        """
        if not self.is_counted:
            return
        if isinstance(self.plan, CachePlan) or self.plan.last_step_full:
            raise DeepCacheError(
                f"this generation was expected to make {self.num_steps} steps, one for each of the scheduler's "
                f"timesteps, but {why}; say num_steps, the number of steps that call the U-Net, to deepcache.cached"
            )
        self.num_steps, self.is_counted = None, False

    def is_full(self) -> bool:
        """Return whether the plan makes this step full."""
        return self.plan.is_full(self.step, self.num_steps)

    def count(self, fingerprint: Fingerprint, *, is_full: bool) -> None:
        """Add a call that has run to the facts, and drop the features after the last step."""
        facts = self.facts
        facts.num_steps = self.step + 1
        facts.calls[fingerprint, is_full] += 1
        if is_full:
            facts.feature_bytes = max(facts.feature_bytes, sum(stream.num_bytes for stream in self.streams))
            if facts.full_steps[-1:] != [self.step]:
                facts.full_steps.append(self.step)
        if self.num_steps is not None and self.step >= self.num_steps - 1:
            self.streams[self.turn].clear()


def _show(values: Values) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{len(values)} timesteps up to {max(values):g}"

"""One generation under way: which step it is at, and the last full steps of each call that a step makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from deepcache.errors import DeepCacheError
from deepcache.plan import CachePlan, Interval
from deepcache.predict import Node, Polynomial
from deepcache.timeline import Place
from deepcache.views import Feature

Fingerprint = tuple[Any, ...]


@dataclass(frozen=True)
class Generation:
    """What one generation did.

    Attributes:
        num_steps: steps so far; a step calls the U-Net once, or twice where conditional and unconditional are apart.
        full_steps: those of which a call was full, in order.
        num_calls: of the U-Net.
        feature_bytes: the most that was kept at once.
    """

    num_steps: int
    full_steps: tuple[int, ...]
    num_calls: int
    feature_bytes: int
    _macs: Callable[[], int] = field(repr=False, compare=False)

    @property
    def macs(self) -> int:
        """Mean over the calls, for one sample, in the paper's convention (`deepcache.macs`).

        Raises:
            UnsupportedUNetError: the U-Net does not run without data, as with xformers' attention.
        """
        return self._macs()


@dataclass
class Stream:
    """The calls that come at the same turn of every step, and the polynomial through their last full steps."""

    fingerprint: Fingerprint = ()
    _polynomial: Polynomial | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The last full steps, newest first."""
        return () if self._polynomial is None else self._polynomial.nodes

    @property
    def num_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for node in self.nodes for part in node.feature)

    def keep(self, nodes: Sequence[Node], fingerprint: Fingerprint) -> None:
        """Take these full steps from now on, which had a call's fingerprint."""
        self._polynomial, self.fingerprint = Polynomial.through(nodes), fingerprint

    def feature(self, step: int, timestep: Any) -> Feature:
        """Of a shallow step, after a full one."""
        assert self._polynomial is not None
        return self._polynomial(step, timestep)

    def clear(self) -> None:
        """Drop the features."""
        self._polynomial = None


@dataclass
class Facts:
    """What a generation has done so far; it holds no features."""

    num_steps: int = 0
    full_steps: list[int] = field(default_factory=list)
    calls: Counter[tuple[Fingerprint, bool]] = field(default_factory=Counter)
    feature_bytes: int = 0


@dataclass
class Run:
    """One generation under way.

    Attributes:
        plan: which steps are full.
        num_steps: after which the features are dropped, where it is known.
        limit: more steps than this are refused.
        timesteps: the scheduler's, by which a generation whose timesteps have no place is known.
        alive: expires with the timesteps that have one.
    """

    plan: CachePlan | Interval
    num_steps: int | None
    limit: int | None
    timesteps: Tensor | None
    alive: StorageWeakRef | None
    step: int = -1
    turn: int = 0
    offset: int | None = None
    streams: list[Stream] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)

    def is_continued_at(self, found: Place | None) -> bool:
        """Whether a call at this place belongs to this generation: it lies no earlier than the last one."""
        return found is None or self.offset is None or found.offset >= self.offset

    def advance(self, found: Place | None) -> Stream:
        """Count a call, and give the stream that it belongs to.

        Raises:
            DeepCacheError: one step more than the generation can have.
        """
        if found is not None and found.offset == self.offset:
            self.turn += 1
        elif self.step + 1 == self.limit:
            raise DeepCacheError(
                f"expected {self.limit} steps in this generation, and this U-Net call would be one more; make the plan "
                "for as many steps as you sample; call cache.reset() before a new generation of a bare U-Net; and "
                "pass timesteps as elements of scheduler.timesteps where a step calls the U-Net twice"
            )
        else:
            self.step, self.turn = self.step + 1, 0
            self.offset = None if found is None else found.offset
        if self.turn == len(self.streams):
            self.streams.append(Stream())
        return self.streams[self.turn]

    def is_full(self) -> bool:
        """Whether the plan makes this step full."""
        return self.plan.is_full(self.step, self.num_steps)

    def count(self, fingerprint: Fingerprint, *, is_full: bool) -> None:
        """Take a call that was made into the facts, and drop the features after the last step."""
        facts = self.facts
        facts.num_steps = self.step + 1
        facts.calls[fingerprint, is_full] += 1
        if is_full:
            facts.feature_bytes = max(facts.feature_bytes, sum(stream.num_bytes for stream in self.streams))
            if facts.full_steps[-1:] != [self.step]:
                facts.full_steps.append(self.step)
        if self.num_steps is not None and self.step >= self.num_steps - 1:
            self.streams[self.turn].clear()

    def is_over(self) -> bool:
        """Whether nobody can continue it, because its timesteps are gone."""
        return self.alive is not None and self.alive.expired()

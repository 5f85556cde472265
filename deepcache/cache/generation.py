"""One generation: its step, the features of its last full steps, and what the user can read about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from fractions import Fraction
from functools import partial
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from deepcache.cache.prediction import Halves, Predictor, Proven, Setting
from deepcache.cache.timeline import Place, Values, goes_on
from deepcache.errors import DeepCacheError
from deepcache.plan import AUTO, CachePlan, Interval
from deepcache.unets.calls import Call
from deepcache.unets.output import Form
from deepcache.unets.structure import Structure

Fingerprint = tuple[Any, ...]  # shapes, types and devices of a call's inputs, and which inputs there are
MOST_CALLS = 512  # of one step, if nobody says how many calls a step makes; a panorama of 8192 pixels makes 121


class Kind(Enum):
    """The kind says what a call runs: the whole U-Net, its outermost stages around a predicted feature, or nothing."""

    FULL = auto()
    SHALLOW = auto()
    IDLE = auto()


@dataclass(frozen=True)
class Generation:
    """What one generation did. A `Generation` holds neither features nor weights, and can be pickled.

    Attributes:
        num_steps: steps so far; a step makes two calls where the halves of guidance run apart.
        full_steps: the steps with a full call, in ascending order.
        num_calls: calls of the U-Net.
        feature_bytes: the largest number of bytes of features and outputs that were kept at the same time.
    """

    num_steps: int
    full_steps: tuple[int, ...]
    num_calls: int
    feature_bytes: int
    _mean_macs: Callable[[], int] = field(repr=False, compare=False)

    @property
    def macs(self) -> int:
        """Mean MACs of a call for one sample (`deepcache.costs.macs`); later changes of the U-Net do not count.

        An `UnsupportedUNetError` says that the U-Net does not run without data, as with xformers' attention.
        """
        return self._mean_macs()


@dataclass(frozen=True)
class MeanMacs:
    """Counts the mean MACs of a generation's calls when somebody asks for them."""

    structure: Structure
    examples: dict[Fingerprint, Call]
    calls: Counter[tuple[Fingerprint, Kind]]
    branch: int

    def __call__(self) -> int:
        """Return the mean MACs of the calls."""
        from deepcache.costs.macs import counted  # sampling does without

        total = Fraction()
        for (fingerprint, kind), number in self.calls.items():
            if kind is not Kind.IDLE:
                args, kwargs = self.examples[fingerprint]
                one = self.structure.once(fingerprint, partial(counted, args=args, kwargs=kwargs))
                total += number * (one.full() if kind is Kind.FULL else one.shallow(self.branch))
        return round(total / self.calls.total())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the mean, or the error that says why it cannot be counted, instead of the U-Net's structure."""
        try:
            return partial, (_returned, self())
        except DeepCacheError as error:
            return partial, (_returned, error)


def _returned(found: int | DeepCacheError) -> int:
    if isinstance(found, DeepCacheError):
        raise found
    return found


@dataclass
class Stream:
    """A stream keeps what the n-th call of every step, for example its unconditional call, is predicted from."""

    fingerprint: Fingerprint = ()  # of the last full steps
    features: Predictor | None = None  # predicts the feature of a shallow step; None where none is kept
    outputs: Predictor | None = None  # predicts the output of an idle step; None where none is kept
    form: Form | None = None  # that of the outputs
    halves: Halves = Halves.NONE  # where those of guidance are

    @property
    def has_kept(self) -> bool:
        """Say whether the stream has a feature or an output to predict from; the next step is full if it has none."""
        return self.features is not None or self.outputs is not None

    @property
    def num_bytes(self) -> int:
        kept = (node for known in (self.features, self.outputs) if known for node in known.nodes)
        return sum(part.nbytes for node in kept for part in node.feature)

    def clear(self) -> None:
        """Drop what is kept."""
        self.features = self.outputs = None


@dataclass
class Facts:
    """What a generation has done so far, without its features."""

    structure: Structure
    num_steps: int = 0
    full_steps: list[int] = field(default_factory=list)
    calls: Counter[tuple[Fingerprint, Kind]] = field(default_factory=Counter)
    feature_bytes: int = 0

    def generation(self, examples: dict[Fingerprint, Call], branch: int) -> Generation:
        """Return the facts as the user reads them; `examples` has a call for each fingerprint."""
        calls = self.calls.copy()  # another thread may be counting
        macs = MeanMacs(self.structure, examples, calls, branch)
        return Generation(self.num_steps, tuple(self.full_steps), calls.total(), self.feature_bytes, macs)


@dataclass
class ActiveGeneration:
    """A generation that is under way."""

    plan: CachePlan | Interval
    facts: Facts
    num_steps: int | None  # after so many steps the features are dropped; None if unknown
    limit: int | None  # after so many steps another step is refused; None if any number may come
    is_counted: bool  # whether `num_steps` is the number of the scheduler's timesteps from the first call on
    calls_per_step: int | None  # None: all calls with one timestep are one step
    stride: int  # the distance in memory from one of the scheduler's timesteps to the next, in elements
    jump: float  # the farthest that a step lay from the one before, in elements; at first, that of usual neighbours
    timesteps: Tensor | None  # the scheduler's, which identify the generation if the calls get numbers or copies
    read_guidance: Callable[[], float | None]  # the strength of guidance now, 1 without guidance; None if unknown
    adds_noise: bool  # whether the solver adds noise on every step
    length: int | None  # the steps of the whole schedule, of which a generation may run the last ones; None if unknown
    alive: StorageWeakRef | None  # expires with the tensor whose elements the calls get; None for numbers and copies
    step: int = -1  # that of the last call; -1 before the first call
    turn: int = 0  # the number of the last call within its step
    offset: int | None = None  # in memory, of the last call's timestep; None for a number or a copy
    values: Values | None = None  # those of the last step's timestep; None if unknown
    direction: int = 0  # -1 if the timesteps fall, 1 if they rise, 0 if unknown
    block: object = None  # the `cache.step` block of the last call; None if its timestep told the step
    streams: list[Stream] = field(default_factory=list)  # one for each turn

    @property
    def is_step_complete(self) -> bool:
        """True after a step's last call; where the number of calls is unknown, after each call."""
        return self.turn + 1 >= (self.calls_per_step or 1)

    @property
    def is_complete(self) -> bool:
        """True after the last call of the last step, if the number of steps is known."""
        return self.step + 1 == self.num_steps and self.is_step_complete

    def is_continued_at(self, found: Place) -> bool:
        """Return whether a call at this place belongs to this generation: it is not before the last call's place.

        A call that lies twice as far from the last one as any before is another image's, if it is not the second call.
        """
        distance = 0 if self.offset is None else found.offset - self.offset
        return distance >= 0 and (self.step < 1 or distance < 2 * self.jump)

    @property
    def is_over(self) -> bool:
        """True once the timesteps' memory is freed, after which no call can continue this generation."""
        return self.alive is not None and self.alive.expired()

    def is_turned_by(self, found: Values | None) -> bool:
        """Return whether a timestep does not go on from those of this generation, so that it begins another one."""
        return found is not None and self.values is not None and not goes_on(found, self.values, self.direction)

    def advance(self, found: Place) -> Stream:
        """Count a call whose timestep has a place in memory, and return the stream of the call."""
        if found.offset == self.offset:
            return self._repeat()
        distance = 0 if self.offset is None else found.offset - self.offset
        if distance > self.stride:
            self._disprove(f"{distance // self.stride - 1} timesteps were passed over")
        if distance >= 2 * self.jump:
            for known in self.streams:  # this may be another image, which takes nothing from the one before
                known.clear()
                known.fingerprint = ()
        self.jump = max(self.jump, distance)
        stream = self._next()
        self.offset = found.offset
        return stream

    def count_on(self, found: Values | None) -> Stream:
        """Count a call whose timestep is a number or a copy (None on a device), and return the stream of the call."""
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

    def go_to(self, step: int, block: object) -> Stream:
        """Count a call whose step is told: all calls in one block are those of one step."""
        if block is self.block:
            return self._repeat()
        if step != self.step + 1:
            raise DeepCacheError(
                f"expected a call in cache.step({self.step + 1}) after step {self.step}, or in cache.step(0) where a "
                f"generation begins, got one in cache.step({step}); call all U-Net calls of a step in one block, and "
                "cache.reset() where a generation begins after one that stopped at step 0"
            )
        stream = self._next()
        self.block = block
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
                "each generation, or say calls_per_step to deepcache.cached; steps with unlike calls are refused"
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
        """Note that there are not as many U-Net calls as the scheduler's timesteps; refuse a plan that needs that."""
        if not self.is_counted:
            return
        if isinstance(self.plan, CachePlan) or self.plan.last_step_full:
            raise DeepCacheError(
                f"this generation was expected to make {self.num_steps} steps, one for each of the scheduler's "
                f"timesteps, but {why}; say num_steps, the number of steps that call the U-Net, to deepcache.cached"
            )
        self.num_steps, self.is_counted = None, False

    def setting(self, halves: Halves) -> Setting:
        """Return what order "auto" goes by; a strength of 1 is an earlier call's where both halves are there."""
        if self.plan.order != AUTO:
            return Setting()
        is_alone = halves is Halves.NONE and len(self.streams) < 2
        strength = 1.0 if is_alone else self.read_guidance()
        return Setting(strength if is_alone or strength != 1 else None, self.length, halves, self.adds_noise)

    def pair(self) -> None:
        """Let the two calls of a step whose halves of guidance are apart predict together, once both have run."""
        if len(self.streams) != 2 or self.turn != 1:
            return
        one, two = self.streams
        if one.fingerprint != two.fingerprint:
            return
        if self.read_guidance() in (None, 1) and one.halves is two.halves is Halves.NONE:
            one.halves = two.halves = Halves.APART  # two calls without a word of guidance may well be its halves
        if one.halves is two.halves is Halves.APART:
            one.features, two.features = _paired(one.features, two.features)
            one.outputs, two.outputs = _paired(one.outputs, two.outputs)

    def kind(self, stream: Stream, fingerprint: Fingerprint) -> Kind:
        """Return what runs on this step for a call with this fingerprint."""
        is_known = stream.has_kept and fingerprint == stream.fingerprint
        if not is_known or self.plan.is_full(self.step, self.num_steps):
            return Kind.FULL
        return Kind.IDLE if self.plan.is_idle(self.step) else Kind.SHALLOW

    def count(self, fingerprint: Fingerprint, kind: Kind) -> None:
        """Add a call that has run to the facts, and drop the features after the last step."""
        facts = self.facts
        facts.num_steps = self.step + 1
        facts.calls[fingerprint, kind] += 1
        if kind is not Kind.IDLE:
            facts.feature_bytes = max(facts.feature_bytes, sum(stream.num_bytes for stream in self.streams))
        if kind is Kind.FULL and facts.full_steps[-1:] != [self.step]:
            facts.full_steps.append(self.step)
        if self.num_steps is not None and self.step >= self.num_steps - 1:
            self.streams[self.turn].clear()


def _paired(one: Predictor | None, two: Predictor | None) -> tuple[Predictor | None, Predictor | None]:
    if not isinstance(one, Proven) or not isinstance(two, Proven) or not one.is_half_of(two):
        return one, two
    return one.with_partner(two), two.with_partner(one)


def _show(values: Values) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{len(values)} timesteps up to {max(values):g}"

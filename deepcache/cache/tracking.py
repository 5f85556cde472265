"""Find the generation and the step of each U-Net call; each thread and each asyncio task has its own generations."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from deepcache.cache.generation import ActiveGeneration, Facts, Stream
from deepcache.cache.timeline import (
    Place,
    counted_place,
    lifetime,
    matched,
    num_after,
    num_left,
    place,
    span_of,
    stride_of,
    values,
)
from deepcache.errors import DeepCacheError, warn
from deepcache.plan import CachePlan, Interval, require_whole
from deepcache.unets.family import UNet
from deepcache.unets.pipelines import (
    Owner,
    adds_noise,
    guidance_of,
    is_transformer,
    num_calls,
    scheduler_of,
    skips_timesteps,
)
from deepcache.unets.structure import structure_of

MOST_REMEMBERED = 1000  # generations


@dataclass(frozen=True, eq=False)
class _Told:
    """One block of `cache.step`: all calls in it belong to one step."""

    tracker: weakref.ref[Tracker]
    step: int


_TOLD: ContextVar[tuple[_Told, ...]] = ContextVar("deepcache_steps", default=())  # of this thread or task
FEW_STEPS = 4  # the number of steps of models made for few steps: LCM, Turbo, Lightning


class Tracker:
    """Finds the generation of each call that a cache answers, and begins new generations."""

    def __init__(
        self,
        unet: UNet,
        owner: Owner,
        plan: CachePlan | Interval,
        num_steps: int | None,
        calls_per_step: int | None,
    ) -> None:
        for name, value in (("num_steps", num_steps), ("calls_per_step", calls_per_step)):
            if value is not None:
                require_whole(name, value, at_least=1)
        if isinstance(plan, CachePlan) and num_steps not in (None, plan.num_steps):
            raise DeepCacheError(
                f"the plan is for {plan.num_steps} steps, and num_steps is {num_steps}; make the plan for {num_steps} "
                "steps, or leave num_steps out"
            )
        self.facts: deque[Facts] = deque(maxlen=MOST_REMEMBERED)  # in the order in which the generations began
        self._unet = cast("nn.Module", unet)  # every U-Net is a module
        self._owner, self._plan = owner, plan
        self._num_steps, self._calls_per_step = num_steps, calls_per_step
        self._local = threading.local()
        self._warned = self._warned_of_leap = False

    def reset(self) -> None:
        """Drop the features of this thread or task, so that its next call begins a new generation."""
        self._active().clear()

    def release(self) -> None:
        """Drop the features of all threads and tasks."""
        self._local = threading.local()

    def drop(self, failed: ActiveGeneration) -> None:
        """Drop a generation in which a call failed, because its features would belong to no step."""
        active = self._active()
        for memory in [memory for memory, other in active.items() if other is failed]:
            del active[memory]

    def locate(self, timestep: Any) -> tuple[ActiveGeneration, Stream, Any]:
        """Return the generation and the stream of a call, and its timestep as the scheduler has it.

        Args:
            timestep: the timestep of the call, a number or a tensor.

        Raises:
            DeepCacheError: the generation or the step cannot be told.
        """
        told = next((each for each in reversed(_TOLD.get()) if each.tracker() is self), None)
        if told is not None:
            return *self._locate_told(told, timestep), timestep
        timesteps = getattr(scheduler_of(self._owner), "timesteps", None)  # none of a bare U-Net
        schedule = timesteps if isinstance(timesteps, Tensor) and timesteps.ndim == 1 else None
        active = self._active()
        found = place(timestep, schedule)
        is_counting = schedule is not None and self._is_counting()
        is_told = is_counting or self._num_steps is not None
        is_number = found is None or (is_told and _is_alone(timestep, found, schedule))
        if is_number and is_counting:
            found = counted_place(timestep, scheduler_of(self._owner))
        elif is_number and schedule is not None and self._num_steps is None:
            known = active.get(schedule.untyped_storage()._cdata)
            last, is_complete = (known.offset, known.is_step_complete) if known else (None, True)
            found = matched(timestep, schedule, last, is_complete=is_complete)
        elif is_number:
            found = None
        if found is None:
            return *self._locate_counted(timestep, schedule), timestep
        generation = active.get(found.memory)
        if generation is None or not generation.is_continued_at(found):
            if generation is not None and generation.offset is not None and found.offset > generation.offset:
                self._warn_of_leap()
            generation = self._begin(timestep, found, schedule, is_number=is_number)
        if is_number and schedule is not None:  # a copy may be rounded, or counted in another unit
            timestep = schedule[(found.offset - int(schedule.storage_offset())) // stride_of(schedule)]
        return generation, generation.advance(found), timestep

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Say that the calls of this thread or task within the block are those of the step of a number."""
        require_whole("the step", number, at_least=0)
        before = _TOLD.get()
        _TOLD.set((*before, _Told(weakref.ref(self), number)))
        try:
            yield
        finally:
            _TOLD.set(before)

    def _locate_told(self, told: _Told, timestep: Any) -> tuple[ActiveGeneration, Stream]:
        """Do what `locate` does for a call whose step is told by `cache.step`."""
        generation = self._active().get(None)
        if generation is None or (told.step == 0 and generation.step > 0 and generation.block is not told):
            if told.step != 0:
                raise DeepCacheError(
                    f"expected a generation to begin with step 0, got a call in cache.step({told.step}); number the "
                    "steps of each generation from 0 on"
                )
            generation = self._begin(timestep, None, None, is_number=True, is_told=True)
        return generation, generation.go_to(told.step, told)

    def _locate_counted(self, timestep: Any, schedule: Tensor | None) -> tuple[ActiveGeneration, Stream]:
        """Do what `locate` does for a number or a copy that is none of the pipeline's timesteps."""
        found, is_told = values(timestep), self._num_steps is not None
        is_planned = isinstance(self._plan, CachePlan) and schedule is None and found is not None
        if not is_told and not is_planned:
            other = "the tensor of the pipeline's timesteps" if schedule is not None else "a tensor of timesteps"
            raise DeepCacheError(
                f"expected the timestep of a U-Net call to be an element of {other}, got a "
                f"{'copy on a device' if found is None else 'number or a copy'} that is not its next one, so that the "
                "generation and step cannot be told; pass the element itself, or say num_steps, and calls_per_step "
                "where a step makes several calls, to deepcache.cached"
            )
        generation = self._active().get(None)
        ended = generation is not None and generation.is_complete and (is_told or generation.is_turned_by(found))
        if generation is None or generation.timesteps is not schedule or ended:
            generation = self._begin(timestep, None, schedule, is_number=True)
        return generation, generation.count_on(found)

    def _begin(
        self,
        timestep: Any,
        found: Place | None,
        schedule: Tensor | None,
        *,
        is_number: bool,
        is_told: bool = False,
    ) -> ActiveGeneration:
        """Begin a generation with this call, or raise a `DeepCacheError` if the plan does not fit the generation.

        `found` is the place of the timestep, or the place in `schedule` that a number or a copy stands for, if any.
        """
        active = self._active()
        memory = None if found is None else found.memory
        num_steps, limit, is_counted = self._length(timestep, found, schedule, is_number=is_number)
        if num_steps is None and isinstance(self._plan, Interval) and self._plan.last_step_full:
            raise DeepCacheError(
                "last_step_full with an interval needs the number of steps, and this call's timestep is none of the "
                "pipeline's; say num_steps to deepcache.cached, or pass a plan, such as deepcache.uniform(num_steps, "
                "interval, last_step_full=True)"
            )
        self._warned = self._warned or warn_if_it_cannot_pay(self._plan, num_steps) or self._warn_of_copies()
        facts = Facts(structure_of(self._unet))
        left = num_left(found, schedule)
        is_own = schedule is not None and (found is None or left is not None)  # else another pipeline calls
        is_placed = schedule is not None and (not is_number or self._is_counting())  # one place for all calls of a step
        generation = ActiveGeneration(
            plan=self._plan,
            facts=facts,
            num_steps=num_steps,
            limit=limit,
            is_counted=is_counted,
            calls_per_step=self._calls_per_step or (None if is_placed or is_told else 1),
            stride=stride_of(schedule),
            jump=inf if self._may_leap() else stride_of(schedule) if schedule is not None else span_of(timestep),
            timesteps=schedule if found is None else None,
            read_guidance=partial(guidance_of, self._owner if is_own else None),
            adds_noise=adds_noise(self._owner),
            length=num_steps if schedule is None or left is None else len(schedule),
            alive=None if found is None else lifetime(schedule if is_number else timestep),  # type: ignore[arg-type]
        )
        for other in [key for key, one in active.items() if key == memory or one.is_over]:
            del active[other]
        active[memory] = generation
        self.facts.append(facts)
        return generation

    def _length(
        self, timestep: Any, found: Place | None, schedule: Tensor | None, *, is_number: bool
    ) -> tuple[int | None, int | None, bool]:
        """Return `num_steps`, `limit` and `is_counted` of the `ActiveGeneration` that begins with this call."""
        if self._num_steps is not None:
            return self._num_steps, None if found is None else self._num_steps, False
        left = num_left(found, schedule)
        if left is None or schedule is None:
            if isinstance(self._plan, Interval):
                return None, None, False
            most = None if found is None or is_number else num_after(timestep)
            if most is not None and self._plan.num_steps > most:
                raise self._misfit(most)
            return self._plan.num_steps, self._plan.num_steps, False
        possible = num_calls(self._owner, schedule[-left:])
        is_counted = not skips_timesteps(self._owner)
        if isinstance(self._plan, Interval):
            return min(possible) if self._plan.last_step_full else max(possible), None, is_counted
        if self._plan.num_steps != possible[0]:
            raise self._misfit(possible[0])
        return self._plan.num_steps, self._plan.num_steps, is_counted

    def _misfit(self, num_steps: int) -> DeepCacheError:
        assert isinstance(self._plan, CachePlan)
        return DeepCacheError(
            f"the plan is for {self._plan.num_steps} steps and this generation makes {num_steps}; make the plan with "
            f"num_steps={num_steps}, or pass interval=N, which fits any length"
        )

    def _may_leap(self) -> bool:
        """Return whether a leap says nothing: steps are told or chosen by the pipeline, or the plan refuses a leap."""
        needs_number = isinstance(self._plan, CachePlan) or self._plan.last_step_full
        return needs_number or self._num_steps is not None or skips_timesteps(self._owner)

    def _warn_of_leap(self) -> None:
        if not self._warned_of_leap:
            warn(
                "some timesteps were passed over, so that a new generation begins with a full step; if the pipeline "
                "calls its U-Net at some timesteps only, say num_steps, the number of such steps, to deepcache.cached"
            )
        self._warned_of_leap = True

    def _warn_of_copies(self) -> bool:
        """Warn after three generations of one step in a row: each timestep was a view of a copy of its own."""
        last = [facts.num_steps for facts in tuple(self.facts)[-3:]]
        if getattr(self._plan, "interval", None) == 1 or last != [1, 1, 1]:
            return False
        warn(
            "three generations in a row had one step, of which nothing is cached; if they are one: pass elements of "
            "one tensor of timesteps, or say num_steps to deepcache.cached"
        )
        return True

    def _is_counting(self) -> bool:
        """Return whether the scheduler's own count tells the step: transformers' pipelines pass copies of timesteps."""
        return is_transformer(self._owner) and hasattr(scheduler_of(self._owner), "step_index")

    def _active(self) -> dict[int | None, ActiveGeneration]:
        """Return this thread's or task's generations by the memory of their timesteps; None stands for no memory."""
        names = vars(self._local)
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no loop runs in this thread
            task = None
        if task is None:
            return names.setdefault("open", {})  # type: ignore[no-any-return]
        return names.setdefault("of_tasks", WeakKeyDictionary()).setdefault(task, {})  # type: ignore[no-any-return]


def reason(num_full: int, num_steps: int) -> str | None:
    """Return why caching cannot pay for a plan with this many full steps; None where it can."""
    if num_full == num_steps:
        steps = "the only step is" if num_steps == 1 else f"all {num_steps} steps are"
        return f"{steps} full, so that nothing is cached"
    if num_steps <= FEW_STEPS:
        return (
            f"{num_steps} steps, as few-step models (LCM, Turbo) take, lie too far apart to share a feature; "
            "sample without a cache"
        )
    return None


def warn_if_it_cannot_pay(plan: CachePlan | Interval, num_steps: int | None) -> bool:
    """Warn of a generation of too few steps, unless its plan caches nothing on purpose; return whether it was done."""
    if num_steps is None or num_steps > FEW_STEPS or getattr(plan, "interval", None) == 1:
        return False
    num_full = sum(plan.is_full(step, num_steps) for step in range(num_steps))
    if isinstance(plan, CachePlan) and 1 < num_steps == num_full:
        return False
    warn(str(reason(num_full, num_steps)))
    return True


def _is_alone(timestep: Tensor, found: Place, schedule: Tensor | None) -> bool:
    """Return whether a timestep is the only element of its memory, like a view of a copy, and not the scheduler's."""
    is_schedule = schedule is not None and schedule.untyped_storage()._cdata == found.memory
    return found.offset == 0 and num_after(timestep) == 1 and not is_schedule

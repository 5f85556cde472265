"""`cached`: a U-Net whose shallow steps take the deep feature from earlier full steps."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from deepcache.compiling import Compile, compiler, compiler_of, steps
from deepcache.errors import DeepCacheError, DeepCacheWarning
from deepcache.explain import explain, warn_if_it_cannot_pay
from deepcache.explanation import Explanation
from deepcache.families import num_calls, require_pipeline, skips_timesteps, unet_of
from deepcache.forward import require_inputs
from deepcache.generation import Facts, Fingerprint, Generation, Run, Spent, Stream
from deepcache.installing import install, uninstall
from deepcache.macs import one_sample, structure_of
from deepcache.plan import CachePlan, Interval, require_whole
from deepcache.predict import Node, coordinate
from deepcache.steps import Steps
from deepcache.timeline import Place, lifetime, matched, num_after, num_left, place, stride_of, values
from deepcache.views import Cut

_REMEMBERED = 1000  # generations


@contextmanager
def cached(
    pipe_or_unet: Any,
    plan: CachePlan | Interval | None = None,
    *,
    interval: int | None = None,
    branch: int | None = None,
    order: int | None = None,
    last_step_full: bool = False,
    num_steps: int | None = None,
    calls_per_step: int | None = None,
    compile: Compile = None,  # noqa: A002 (torch's word)
) -> Iterator[Cache]:
    """Cache a U-Net's deep feature inside a `with` block, and restore the U-Net after it.

        with deepcache.cached(pipe, interval=3, branch=0, order=1) as cache:
            image = pipe("a red sneaker").images[0]
        cache.generations[-1].full_steps

    Which step of which generation a U-Net call is follows from the timestep that the call is given:

    - An element of a tensor of timesteps, as every diffusers pipeline passes it, tells both by its place in memory,
      whichever pipeline, scheduler or thread uses the U-Net.
    - A number or a copy whose value is one of the pipeline's timesteps stands for that element.
    - Other numbers and copies have to be told. Say `num_steps`: after so many steps a new generation begins. On a bare
      U-Net, numbers that only go down, or only up, are one generation from the block's beginning, or from
      `cache.reset()`, on.

    A call that fits none of these is refused with a `DeepCacheError`. A one-element tensor that is a view of its own
    memory is a generation of one step: full, so never wrong.

    Blocks may be nested: the innermost that a thread, or a task of asyncio, is in counts. A thread or task that is in
    none takes the one that is open, as a block's workers do; so a thread that shall sample uncached needs a U-Net of
    its own. Coroutines that are driven by hand share one context: give each a task, or all of them one block.

    Gradients flow through the stages that a step runs; a kept feature is a constant to them.

    Args:
        pipe_or_unet: a diffusers pipeline, anything with `.unet` and `.scheduler`, or a bare U-Net; it may be compiled.
        plan: the full steps, branch and order; its `num_steps` must be the generation's. Or the rule of an interval.
        interval: instead of a plan, N: steps 0, N, 2N, ... are full; 1 caches nothing.
        branch: with `interval`: the skips 0..branch stay live on a shallow step; 0 if not given.
        order: with `interval`: 0 reuses the last feature, as in the paper; 1, taken if not given, and 2 predict it from
            the last two and three.
        last_step_full: with `interval`: the last step is full, too; where its number is known before.
        num_steps: how many steps a generation makes, at least 1. Needed where timesteps are numbers or copies that
            `deepcache` cannot follow, or where a pipeline calls its U-Net at some of its timesteps only.
        calls_per_step: how many U-Net calls every step makes, at least 1. If not given, a pipeline's step makes as many
            calls as come with one timestep, and a bare U-Net's step makes one.
        compile: None, a mode of `torch.compile`, or a dict of its arguments: the full and the shallow step become two
            static graphs. A U-Net that is compiled already is so in the way that it was.

    Yields:
        The `Cache`, which tells what each generation did.

    Raises:
        DeepCacheError: an argument out of range, or a U-Net whose `forward` another package has replaced; within the
            block, a call whose generation or step cannot be told.
        UnsupportedUNetError: a pipeline, U-Net or input of it that cannot be cached; before anything runs.

    References:
        DeepCache: Accelerating Diffusion Models for Free (Ma et al., 2024), https://arxiv.org/abs/2312.00858
    """
    outer, unet = unet_of(pipe_or_unet)
    require_pipeline(pipe_or_unet)
    extras = {"branch": branch, "order": order, "last_step_full": last_step_full or None}
    if (plan is None) == (interval is None) or (plan is not None and any(v is not None for v in extras.values())):
        raise DeepCacheError(
            "expected either a plan (which has its branch, order and last step) or an interval (with these), "
            f"got plan {plan!r}, interval {interval!r}, {', '.join(f'{k} {v!r}' for k, v in extras.items())}"
        )
    if plan is not None and not isinstance(plan, (CachePlan, Interval)):
        raise DeepCacheError(f"expected plan to be a CachePlan, got {plan!r}; a number of steps goes to interval=")
    given = {name: value for name, value in extras.items() if value is not None}
    chosen = plan or Interval(interval, **given)  # type: ignore[arg-type]
    told = Told(num_steps, calls_per_step)
    told.require_fit(chosen)
    cut = Cut.of(unet, chosen.branch)
    cache = Cache(unet, pipe_or_unet, chosen, told, steps(unet, cut, compiler(compile) or compiler_of(outer)))
    installed = install(unet, outer, cache)
    try:
        yield cache
    finally:
        uninstall(installed, cache)
        cache.release()


@dataclass(frozen=True)
class Told:
    """What the user says of a generation's calls; the attributes are those of `cached`."""

    num_steps: int | None = None
    calls_per_step: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                object.__setattr__(self, name, require_whole(name, value, at_least=1))

    def require_fit(self, plan: CachePlan | Interval) -> None:
        """Refuse a number of steps that is not the plan's."""
        if isinstance(plan, CachePlan) and self.num_steps not in (None, plan.num_steps):
            raise DeepCacheError(
                f"the plan is for {plan.num_steps} steps, and num_steps is {self.num_steps}; make the plan for "
                f"{self.num_steps} steps, or leave num_steps out"
            )


class Cache:
    """Answers a U-Net's calls and owns the state of their generations, for each thread and task of asyncio its own.

    Attributes:
        plan: the `CachePlan`, or of an interval the rule that makes one of any length.
    """

    def __init__(self, unet: Any, owner: Any, plan: CachePlan | Interval, told: Told, kernel: Steps) -> None:
        self.plan = plan
        self._unet, self._owner, self._told, self._kernel = unet, owner, told, kernel
        self._local = threading.local()
        self._facts: deque[Facts] = deque(maxlen=_REMEMBERED)
        self._examples: dict[Fingerprint, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._warned = False

    @property
    def generations(self) -> tuple[Generation, ...]:
        """The last generations since the block was entered, at most 1000, in the order in which they began."""
        return tuple(self._describe(facts) for facts in tuple(self._facts) if facts.calls)

    def explain(self, num_steps: int | None = None) -> Explanation:
        """What the plan costs on this pipeline and the bound on its speedup; `print` it.

        Args:
            num_steps: U-Net calls of a generation; if None, the plan's, else the pipeline's default.

        Raises:
            DeepCacheError: no number of steps: an interval on a bare U-Net.
            UnsupportedUNetError: a U-Net whose inputs its configuration does not tell (generate once before), or that
                does not run without data, as where it is quantised.
        """
        call = next(reversed(self._examples.values()), None)
        return explain(self._owner, self.plan, num_steps, call=call)

    def reset(self) -> None:
        """Drop the features of this thread or task: its next U-Net call begins a new generation."""
        self._open().clear()

    def release(self) -> None:
        """Drop every thread's features; what the generations did stays. The block's end calls it."""
        self._local = threading.local()

    def keep(self, block: object) -> None:
        """Hold a reference to what closes the block, so that it is not collected while the U-Net is cached."""
        self._block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        require_inputs(self._unet, args, kwargs)
        timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
        run, stream = self._locate(timestep)
        try:
            return self._step(run, stream, timestep, args, kwargs)
        except BaseException:  # what it kept would belong to no step
            opened = self._open()
            for memory in [memory for memory, other in opened.items() if other is run]:
                del opened[memory]
            raise

    def _step(self, run: Run, stream: Stream, timestep: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        fingerprint = _fingerprint(args, kwargs)
        is_same = fingerprint == stream.fingerprint
        is_full = not stream.nodes or not is_same or run.is_full()
        if is_full:
            before = stream.nodes[: self.plan.order] if is_same else ()
            stream.clear()  # what is not needed any longer goes before the step takes its memory
            output, feature = self._kernel.full(*args, **kwargs)
            constant = tuple(part.detach() if part.requires_grad else part for part in feature)
            stream.keep((Node(run.step, coordinate(timestep), constant), *before), fingerprint)
            if fingerprint not in self._examples:
                self._examples[fingerprint] = one_sample(args, kwargs)
        else:
            output = self._kernel.shallow(stream.feature(run.step, timestep), *args, **kwargs)
        run.count(fingerprint, is_full=is_full)
        return output

    def _open(self) -> dict[int | None, Run]:
        """Return the generations of this thread or task by the memory of their timesteps; None for no memory."""
        names = vars(self._local)
        task = _task()
        if task is None:
            return names.setdefault("open", {})  # type: ignore[no-any-return]
        return names.setdefault("of_tasks", WeakKeyDictionary()).setdefault(task, {})  # type: ignore[no-any-return]

    def _locate(self, timestep: Any) -> tuple[Run, Stream]:
        """Return the generation and the stream that this call belongs to.

        Raises:
            DeepCacheError: neither can be told.
        """
        opened, schedule = self._open(), self._schedule()
        found = place(timestep, schedule)
        is_number = found is None or (self._told.num_steps is not None and _is_alone(timestep, found, schedule))
        if is_number and schedule is not None:
            known = opened.get(schedule.untyped_storage()._cdata)
            last, is_complete = (known.offset, known.is_step_complete) if known else (None, True)
            found = matched(timestep, schedule, last, is_complete=is_complete)
        elif is_number:
            found = None
        if found is None:
            return self._locate_counted(timestep, schedule)
        run = opened.get(found.memory)
        if run is None or not run.is_continued_at(found):
            run = self._begin(timestep, found, schedule, is_number=is_number)
        return run, run.advance(found)

    def _locate_counted(self, timestep: Any, schedule: Tensor | None) -> tuple[Run, Stream]:
        """As `_locate`, for a number or copy that is none of the pipeline's timesteps."""
        found, is_told = values(timestep), self._told.num_steps is not None
        if not is_told and (schedule is not None or found is None):
            kind = "copy on a device" if found is None else "number or copy"
            other = "the pipeline's timesteps" if schedule is not None else "a tensor of timesteps"
            raise DeepCacheError(
                f"expected the timestep of a U-Net call to be an element of {other}, got a {kind} that is none of "
                "them, so that its generation and step cannot be told; pass the element itself, or say num_steps, and "
                "calls_per_step where a step makes several calls, to deepcache.cached"
            )
        run = self._open().get(None)
        if run is None or run.timesteps is not schedule or (is_told and run.is_complete):
            run = self._begin(timestep, None, schedule, is_number=True)
        return run, run.count_on(found)

    def _schedule(self) -> Tensor | None:
        """Return the timesteps of the pipeline's scheduler; None of a bare U-Net."""
        timesteps = getattr(getattr(self._owner, "scheduler", None), "timesteps", None)
        return timesteps if isinstance(timesteps, Tensor) and timesteps.ndim == 1 else None

    def _begin(self, timestep: Any, found: Place | None, schedule: Tensor | None, *, is_number: bool) -> Run:
        """Begin a generation with this call.

        Raises:
            DeepCacheError: the plan does not fit it.
        """
        opened = self._open()
        memory = None if found is None else found.memory
        num_steps, limit, is_counted = self._num_steps(timestep, found, schedule, is_number=is_number)
        if num_steps is None and isinstance(self.plan, Interval) and self.plan.last_step_full:
            raise DeepCacheError(
                "last_step_full with an interval needs the number of steps, and this call's timestep is none of the "
                "pipeline's; say num_steps to deepcache.cached, or pass a plan, such as deepcache.uniform(num_steps, "
                "interval, last_step_full=True)"
            )
        self._warned = self._warned or warn_if_it_cannot_pay(self.plan, num_steps) or self._warn_of_copies()
        facts = Facts(structure_of(self._unet))
        run = Run(
            plan=self.plan,
            facts=facts,
            num_steps=num_steps,
            limit=limit,
            is_counted=is_counted,
            calls_per_step=self._told.calls_per_step or (1 if is_number or schedule is None else None),
            stride=stride_of(schedule),
            timesteps=schedule if found is None else None,
            alive=None if found is None else lifetime(schedule if is_number else timestep),  # type: ignore[arg-type]
        )
        for other in [key for key, one in opened.items() if key == memory or one.is_over()]:
            del opened[other]
        opened[memory] = run
        self._facts.append(facts)
        return run
    def _num_steps(
        self, timestep: Any, found: Place | None, schedule: Tensor | None, *, is_number: bool
    ) -> tuple[int | None, int | None, bool]:
        """Return `num_steps`, `limit` and `is_counted` of the `Run` that begins with this call.

        Raises:
            DeepCacheError: the plan is for another number of steps.
        """
        if self._told.num_steps is not None:
            return self._told.num_steps, None if found is None else self._told.num_steps, False
        left = None if found is None else num_left(found, schedule)
        if left is None or schedule is None:
            if isinstance(self.plan, Interval):
                return None, None, False
            most = None if found is None or is_number else num_after(timestep)
            if most is not None and self.plan.num_steps > most:
                raise self._misfit((most,))
            return self.plan.num_steps, self.plan.num_steps, False
        possible = num_calls(self._owner, schedule[-left:])
        is_counted = not skips_timesteps(self._owner)
        if isinstance(self.plan, Interval):
            return min(possible) if self.plan.last_step_full else max(possible), None, is_counted
        # numbers may be some of the timesteps: a loop over a schedule that was never set has a thousand
        if self.plan.num_steps not in possible and not (is_number and self.plan.num_steps <= left):
            raise self._misfit(possible)
        return self.plan.num_steps, self.plan.num_steps, is_counted and not is_number

    def _misfit(self, possible: tuple[int, ...]) -> DeepCacheError:
        assert isinstance(self.plan, CachePlan)
        return DeepCacheError(
            f"the plan is for {self.plan.num_steps} steps and this generation makes {' or '.join(map(str, possible))}; "
            f"make the plan with num_steps={possible[0]}, or pass interval=N, which fits any length"
        )

    def _warn_of_copies(self) -> bool:
        """Warn of three generations of one call each in a row: views of copies, each in a memory of its own."""
        if getattr(self.plan, "interval", None) == 1:
            return False
        if [facts.num_steps for facts in tuple(self._facts)[-3:]] != [1, 1, 1]:
            return False
        warnings.warn(
            "three generations in a row had one step, of which nothing is cached; if they are one: pass elements of "
            "one tensor of timesteps, or say num_steps to deepcache.cached",
            DeepCacheWarning,
            stacklevel=2,
        )
        return True

    def _describe(self, facts: Facts) -> Generation:
        calls = facts.calls.copy()  # another thread may be counting
        spent = Spent(facts.structure, self._examples, calls, self.plan.branch)
        return Generation(facts.num_steps, tuple(facts.full_steps), calls.total(), facts.feature_bytes, spent)


def _task() -> Any:
    """Return the task of asyncio that makes this call, if there is one."""
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


def _is_alone(timestep: Tensor, found: Place, schedule: Tensor | None) -> bool:
    """Whether a timestep is the only element of its memory, as a view of a copy is, and not the scheduler's."""
    is_schedule = schedule is not None and schedule.untyped_storage()._cdata == found.memory
    return found.offset == 0 and num_after(timestep) == 1 and not is_schedule


def _fingerprint(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Fingerprint:
    """Shapes, types and devices of a call's tensors, and which optional inputs are there."""
    return tuple(map(_mark, args)), tuple((key, _mark(value)) for key, value in kwargs.items())


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, dict):
        return tuple((key, _mark(inner)) for key, inner in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(_mark, value))
    return type(value)

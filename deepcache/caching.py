"""`cached`: a U-Net whose shallow steps take the deep feature from earlier full steps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from torch import Tensor

from deepcache.compiling import Compile, compiler, compiler_of, steps
from deepcache.errors import DeepCacheError, warn
from deepcache.example import one_line
from deepcache.explain import explain, warn_if_it_cannot_pay
from deepcache.explanation import Explanation
from deepcache.families import require_pipeline, unet_of
from deepcache.forward import require_inputs
from deepcache.generation import Facts, Fingerprint, Generation, Run, Stream
from deepcache.installing import install, uninstall
from deepcache.macs import Cost, cost, one_sample
from deepcache.plan import CachePlan, Interval
from deepcache.predict import Node, coordinate
from deepcache.steps import Steps
from deepcache.timeline import Place, lifetime, num_after, num_left, place
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
    compile: Compile = None,  # noqa: A002 (torch's word)
    cuda_graphs: bool = False,
) -> Iterator[Cache]:
    """Cache a U-Net's deep feature inside a `with` block, and restore the U-Net after it.

        with deepcache.cached(pipe, interval=3, branch=0, order=1) as cache:
            image = pipe("a red sneaker").images[0]
        cache.generations[-1].full_steps

    A generation begins when a pipeline passes the first element of new timesteps; whichever pipeline, scheduler or
    thread uses the U-Net. Where timesteps are numbers or copies instead, it begins when the scheduler's are set again
    and, of a bare U-Net, on entry and on `cache.reset()`; use a block a thread there. A loop of your own that stops
    after its first step and begins again on the same timesteps must call `cache.reset()` before, since the same
    timestep again means another call of the same step; and where a step makes several calls, they come in the same
    order on every step. Blocks may be nested: the innermost of a thread counts. A thread that has entered none takes
    the one that is open, as a block's workers do; so a thread that shall sample uncached needs a U-Net of its own.

    Gradients flow through the stages that a step runs; a kept feature is a constant to them.

    Args:
        pipe_or_unet: a diffusers pipeline, anything with `.unet` and `.scheduler`, or a bare U-Net; it may be compiled.
        plan: the full steps, branch and order; its `num_steps` must be the generation's. Or the rule of an interval.
        interval: instead of a plan, N: steps 0, N, 2N, ... are full; 1 caches nothing.
        branch: with `interval`: the skips 0..branch stay live on a shallow step; 0 if not given.
        order: with `interval`: 0 reuses the last feature, as in the paper; 1, taken if not given, and 2 predict it from
            the last two and three.
        last_step_full: with `interval`: the last step is full, too; where its number is known before.
        compile: None, a mode of `torch.compile`, or a dict of its arguments: the full and the shallow step become two
            static graphs. A U-Net that is compiled already is so in the way that it was.
        cuda_graphs: capture each step, eager or compiled, once for each shape of its inputs, and replay it: what it
            then takes of the host is one launch. For U-Nets on such a device; memory in `Cache.graph_bytes`. Weights
            that are moved, and LoRA that is loaded, are seen; another scale of an adapter or FreeU is not: set these
            before. Where gradients are recorded, the steps run without graphs.

    Yields:
        The `Cache`, which tells what each generation did.

    Raises:
        DeepCacheError: an argument out of range, or a U-Net whose `forward` another package has replaced.
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
    cut = Cut.of(unet, chosen.branch)
    how = compiler(compile, cuda_graphs=cuda_graphs) or compiler_of(outer)
    cache = Cache(unet, pipe_or_unet, chosen, steps(unet, cut, how, cuda_graphs=cuda_graphs))
    installed = install(unet, outer, cache)
    try:
        yield cache
    finally:
        uninstall(installed, cache)
        cache.release()


class Cache:
    """Answers a U-Net's calls and owns the state of their generations, for each thread its own.

    Attributes:
        plan: the `CachePlan`, or of an interval the rule that makes one of any length.
    """

    def __init__(self, unet: Any, owner: Any, plan: CachePlan | Interval, kernel: Steps) -> None:
        self.plan = plan
        self._unet, self._owner, self._kernel = unet, owner, kernel
        self._local = threading.local()
        self._facts: deque[Facts] = deque(maxlen=_REMEMBERED)
        self._examples: dict[Fingerprint, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._costs: dict[Fingerprint, Cost] = {}
        self._warned = False

    @property
    def generations(self) -> tuple[Generation, ...]:
        """The last generations since the block was entered, at most 1000, in the order in which they began."""
        return tuple(self._describe(facts) for facts in tuple(self._facts) if facts.calls)

    @property
    def graph_bytes(self) -> int:
        """Memory of the device that `cuda_graphs` holds within the block: buffers, and what their kernels need."""
        return self._kernel.num_bytes

    def explain(self, num_steps: int | None = None) -> Explanation:
        """What the plan costs on this pipeline and the bound on its speedup; `print` it.

        Args:
            num_steps: U-Net calls of a generation; if None, the plan's, else the pipeline's default.

        Raises:
            DeepCacheError: no number of steps: an interval on a bare U-Net.
            UnsupportedUNetError: a U-Net whose inputs its configuration does not tell; generate once before.
        """
        call = next(reversed(self._examples.values()), None)
        return explain(self._owner, self.plan, num_steps, call=call)

    def reset(self) -> None:
        """Drop this thread's features: its next U-Net call begins a new generation."""
        self._open().clear()

    def release(self) -> None:
        """Drop every thread's features, and the graphs; what the generations did stays. The block's end calls it."""
        self._local = threading.local()
        self._kernel.release()

    def keep(self, block: object) -> None:
        """Keep what closes the block as long as the U-Net is cached, whoever else forgets it."""
        self._block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        require_inputs(self._unet, args, kwargs)
        timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
        run, stream = self._locate(timestep)
        try:
            return self._step(run, stream, timestep, args, kwargs)
        except BaseException:  # what it kept would belong to no step
            self._local.open = {memory: other for memory, other in self._open().items() if other is not run}
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
        """This thread's generations by the memory of their timesteps; None for timesteps without a place."""
        return vars(self._local).setdefault("open", {})  # type: ignore[no-any-return]

    def _locate(self, timestep: Any) -> tuple[Run, Stream]:
        """The generation and the stream that this call belongs to."""
        timesteps = getattr(getattr(self._owner, "scheduler", None), "timesteps", None)
        found = place(timestep, timesteps)
        memory = None if found is None else found.memory
        run = self._open().get(memory)
        if run is None or not run.is_continued_at(found) or (found is None and run.timesteps is not timesteps):
            run = self._begin(timestep, found, timesteps)
        return run, run.advance(found)

    def _begin(self, timestep: Any, found: Place | None, timesteps: Tensor | None) -> Run:
        memory = None if found is None else found.memory
        still_open = {k: run for k, run in self._open().items() if k != memory and not run.is_over()}
        scheduler = getattr(self._owner, "scheduler", None)
        left = num_left(found, timesteps, getattr(scheduler, "begin_index", None))
        if left is not None and getattr(self._owner, "denoising_end", None) is not None:
            left = min(left, self._owner._num_timesteps)  # SDXL's base stops before the last timestep
        num_steps, limit = left, left if found is None else None
        if isinstance(self.plan, CachePlan):
            self._require_fit(self.plan, left, timestep, found)
            num_steps = limit = self.plan.num_steps
        elif left is None and self.plan.last_step_full:
            raise DeepCacheError(
                "last_step_full with an interval needs a scheduler that tells the number of steps, and this call's "
                "timestep is none of the pipeline's; pass a plan, such as deepcache.uniform(num_steps, interval, "
                "last_step_full=True)"
            )
        self._warned = self._warned or warn_if_it_cannot_pay(self.plan, num_steps) or self._warn_of_copies(timesteps)
        by_object, by_memory = (timesteps, None) if found is None else (None, lifetime(timestep))
        run = still_open[memory] = Run(self.plan, num_steps, limit, by_object, by_memory)
        self._local.open = still_open
        self._facts.append(run.facts)
        return run

    def _warn_of_copies(self, timesteps: Tensor | None) -> bool:
        """Of a bare U-Net, three generations of one call each: views of copies, each in a memory of its own."""
        if timesteps is not None or getattr(self.plan, "interval", None) == 1:
            return False
        if [facts.num_steps for facts in tuple(self._facts)[-3:]] != [1, 1, 1]:
            return False
        warn(
            "three generations in a row had one step, of which nothing is cached; if they are one: pass elements of "
            "one tensor of timesteps, or numbers (and then cache.reset() between generations)"
        )
        return True

    def _require_fit(self, plan: CachePlan, left: int | None, timestep: Any, found: Place | None) -> None:
        """Refuse a plan for more or fewer steps than the generation will have, as far as that is known."""
        if found is None:  # numbers may begin later, as image-to-image does
            fits = left is None or plan.num_steps <= left
        elif left is None:
            left = num_after(timestep)
            fits = plan.num_steps <= left
        else:
            fits = plan.num_steps == left
        if not fits:
            raise DeepCacheError(
                f"the plan is for {plan.num_steps} steps and this generation makes {left}; make the plan with "
                f"num_steps={left}, or pass interval=N, which fits any length"
            )

    def _describe(self, facts: Facts) -> Generation:
        calls = facts.calls.copy()  # another thread may be counting

        def macs() -> int:
            total = Fraction()
            for (fingerprint, is_full), number in calls.items():
                one = self._cost(fingerprint)
                total += number * (one.full() if is_full else one.shallow(self.plan.branch))
            return round(total / calls.total())

        return Generation(facts.num_steps, tuple(facts.full_steps), calls.total(), facts.feature_bytes, macs)

    def _cost(self, fingerprint: Fingerprint) -> Cost:
        if fingerprint not in self._costs:
            args, kwargs = self._examples[fingerprint]
            with one_line(
                "this U-Net does not run without data, by which its MACs are counted",
                "set another attention processor, or count the MACs of its configuration: deepcache macs",
            ):
                self._costs[fingerprint] = cost(self._unet, *args, **kwargs)
        return self._costs[fingerprint]


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

"""`cached`: a U-Net whose shallow steps take the deep feature from earlier full steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from deepcache.cache.generation import Facts, Fingerprint, Generation, Run, Spent, Stream
from deepcache.cache.installing import install, uninstall
from deepcache.cache.prediction import Node, coordinate
from deepcache.cache.steps import Compile, compiler, compiler_of, steps
from deepcache.cache.tracking import Told, Tracker
from deepcache.errors import DeepCacheError
from deepcache.plan import CachePlan, Interval
from deepcache.unets.calls import one_sample
from deepcache.unets.family import Steps
from deepcache.unets.pipelines import require_pipeline, unet_of
from deepcache.unets.registry import cut

if TYPE_CHECKING:
    from deepcache.costs.page import Explanation


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
    cuda_graphs: bool = False,
) -> Iterator[Cache]:
    """Cache a U-Net's deep feature inside a `with` block, and restore the U-Net after it.

        with deepcache.cached(pipe, interval=3, branch=0, order=1) as cache:
            image = pipe("a red sneaker").images[0]
        cache.generations[-1].full_steps

    Which step of which generation a U-Net call is follows from the timestep that the call is given:

    - An element of a tensor of timesteps, as every diffusers pipeline passes it, tells both by its place in memory,
      whichever pipeline, scheduler or thread uses the U-Net.
    - A number or a copy whose value is one of the pipeline's timesteps stands for that element.
    - Other numbers and copies have to be told: say `num_steps`, or pass a plan to a bare U-Net. After so many steps the
      generation is over; if one stops earlier, call `cache.reset()` before the next.

    A call that fits none of these is refused with a `DeepCacheError`. A tensor that is a view of one element of a
    memory of its own is a generation of one step: full, so never wrong.

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
        cuda_graphs: refused; `compile="reduce-overhead"` captures CUDA graphs.

    Yields:
        The `Cache`, which tells what each generation did.

    Raises:
        DeepCacheError: an argument out of range, or a U-Net whose `forward` another package has replaced; within the
            block, a call whose generation or step cannot be told.
        UnsupportedUNetError: a pipeline, U-Net or input of it that cannot be cached; before anything runs.

    References:
        DeepCache: Accelerating Diffusion Models for Free (Ma et al., 2024), https://arxiv.org/abs/2312.00858
    """
    if cuda_graphs:
        raise DeepCacheError(
            "cuda_graphs is no longer there; pass compile='reduce-overhead', which captures CUDA graphs"
        )
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
    kernel = steps(cut(unet, chosen.branch), compiler(compile) or compiler_of(outer))
    cache = Cache(unet, pipe_or_unet, chosen, told, kernel)
    installed = install(unet, outer, cache)
    try:
        yield cache
    finally:
        uninstall(installed, cache)
        cache.release()


class Cache:
    """Answers a U-Net's calls and owns the state of their generations, for each thread and task of asyncio its own.

    Attributes:
        plan: the `CachePlan`, or of an interval the rule that makes one of any length.
    """

    def __init__(self, unet: Any, owner: Any, plan: CachePlan | Interval, told: Told, kernel: Steps) -> None:
        self.plan = plan
        self._unet, self._owner, self._kernel = unet, owner, kernel
        self._tracker = Tracker(unet, owner, plan, told)
        self._examples: dict[Fingerprint, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    @property
    def generations(self) -> tuple[Generation, ...]:
        """The last generations since the block was entered, at most 1000, in the order in which they began."""
        return tuple(self._describe(facts) for facts in tuple(self._tracker.facts) if facts.calls)

    def explain(self, num_steps: int | None = None) -> Explanation:
        """What the plan costs on this pipeline and the bound on its speedup; `print` it.

        Args:
            num_steps: U-Net calls of a generation; if None, the plan's, else the pipeline's default.

        Raises:
            DeepCacheError: no number of steps: an interval on a bare U-Net.
            UnsupportedUNetError: a U-Net whose inputs its configuration does not tell (generate once before), or that
                does not run without data, as where it is quantised.
        """
        from deepcache.costs.explain import explain  # sampling does without

        call = next(reversed(self._examples.values()), None)
        return explain(self._owner, self.plan, num_steps, call=call)

    def reset(self) -> None:
        """Drop the features of this thread or task: its next U-Net call begins a new generation."""
        self._tracker.reset()

    def release(self) -> None:
        """Drop every thread's features; what the generations did stays. The block's end calls it."""
        self._tracker.release()

    def keep(self, block: object) -> None:
        """Hold a reference to what closes the block, so that it is not collected while the U-Net is cached."""
        self._block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._kernel.require_inputs(args, kwargs)
        timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
        run, stream = self._tracker.locate(timestep)
        try:
            return self._step(run, stream, timestep, args, kwargs)
        except BaseException:
            self._tracker.drop(run)
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

    def _describe(self, facts: Facts) -> Generation:
        calls = facts.calls.copy()  # another thread may be counting
        spent = Spent(facts.structure, self._examples, calls, self.plan.branch)
        return Generation(facts.num_steps, tuple(facts.full_steps), calls.total(), facts.feature_bytes, spent)


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

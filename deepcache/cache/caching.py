"""`cached`: make a U-Net run only its outermost stages on most steps, and predict the rest from earlier full steps."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from deepcache.cache.generation import ActiveGeneration, CallMacs, Facts, Fingerprint, Generation, Stream
from deepcache.cache.installing import Installed, install, uninstall
from deepcache.cache.prediction import Node, coordinate
from deepcache.cache.steps import Compile, compiler, compiler_of, steps
from deepcache.cache.tracking import Counts, Tracker
from deepcache.errors import DeepCacheError
from deepcache.plan import CachePlan, Interval
from deepcache.typing import Pipeline, UNet
from deepcache.unets.calls import one_sample
from deepcache.unets.family import Steps
from deepcache.unets.pipelines import require_pipeline, unet_of
from deepcache.unets.registry import cut

if TYPE_CHECKING:
    from deepcache.costs.explain import Explanation


def cached(
    pipe_or_unet: Pipeline | UNet,
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
) -> Cache:
    """Return a cache for the U-Net of a diffusers pipeline, or for a bare U-Net.

    While the cache is in use, a full step runs the whole U-Net and keeps one deep feature; a shallow step runs only the
    outermost stages and predicts the deep feature from the last full steps. Nothing is installed in the U-Net before
    the cache is used. Use it for a block, which gives the U-Net back at its end, also after an exception:

        with deepcache.cached(pipe, interval=3, branch=0, order=1) as cache:
            image = pipe("a red sneaker").images[0]
        cache.generations[-1].full_steps

    Or enable it for as long as a server lives:

        cache = deepcache.cached(pipe, interval=3)
        cache.enable()
        ...
        cache.disable()

    **Threads and tasks.** A block belongs to the thread or asyncio task that entered it; an enabled cache belongs to
    all. A U-Net call is answered by the innermost block that its thread or task is in; without such a block, by the
    cache that was enabled last; without an enabled cache, by the only block that is open, since the call may come from
    a worker of that block. If several blocks are open, such a call is refused. A thread that is to sample uncached
    therefore needs a U-Net of its own. Coroutines that are driven by hand share one context: give each a task, or
    give all of them one block. Every thread and task has generations of its own, so none changes another's images.

    **Steps.** The timestep of a U-Net call tells which step of which generation the call is:

    - A timestep that is an element of a tensor, as every diffusers pipeline passes it, tells both by its place in
      memory, whichever pipeline, scheduler or thread makes the call.
    - A number or a copy that equals one of the pipeline's timesteps stands for that timestep.
    - Other numbers and copies tell nothing: pass `num_steps`, or pass a plan together with a bare U-Net. The generation
      is over after so many steps; if a generation stops earlier, call `cache.reset()` before the next one.

    Any other call is refused with a `DeepCacheError`. A timestep that is a view of a copy of its own counts as a
    generation of one step, which is full and therefore never wrong.

    **Gradients** flow through the stages that a step runs; a kept feature is a constant.

    Args:
        pipe_or_unet: a diffusers pipeline, any object with `.unet` and `.scheduler`, or a U-Net. The U-Net may be
            compiled.
        plan: the full steps, the branch and the order; `plan.num_steps` must be the number of steps of a generation.
            An `Interval` fits generations of any length.
        interval: instead of a plan, N, at least 1: steps 0, N, 2N, ... are full; 1 caches nothing.
        branch: with `interval`: b, at least 0 (the default); the skips 0..b stay live on a shallow step.
        order: with `interval`: 0 reuses the last feature, as in the paper; 1 (the default) and 2 extrapolate from the
            last two or three features.
        last_step_full: with `interval`: whether the last step is full as well; this needs a known number of steps.
        num_steps: the number of steps of a generation, at least 1. It is needed if timesteps are numbers or copies that
            tell nothing, or if a pipeline calls its U-Net at some of its timesteps only.
        calls_per_step: the number of U-Net calls in every step, at least 1. By default, a step of a pipeline has as
            many calls as come with one timestep, and a step of a bare U-Net has one call.
        compile: a mode of `torch.compile`, or a dict of its arguments, to compile the full and the shallow step; None
            compiles them the way that the U-Net is compiled already, if it is.
        cuda_graphs: refused; `compile="reduce-overhead"` captures CUDA graphs.

    Returns:
        A `Cache`: a context manager with `enable` and `disable`, which also tells what each generation did.

    Raises:
        DeepCacheError: an argument is out of its range. In use: another package has replaced the U-Net's `forward`, or
            the generation or the step of a call cannot be told.
        UnsupportedUNetError: the pipeline or the U-Net cannot be cached. In use: an input cannot be cached; the error
            comes before anything runs.

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
    counts = Counts(num_steps, calls_per_step)
    counts.require_fit(chosen)
    kernel = steps(cut(unet, chosen.branch), compiler(compile) or compiler_of(outer))
    return Cache(unet, pipe_or_unet, chosen, counts, kernel)


class Cache:
    """A U-Net's cache, which `cached` makes: it answers the U-Net's calls while it is in a `with` block or enabled.

    A cache can be used again after its block or after `disable`, and keeps its compiled steps.

    Attributes:
        plan: the `CachePlan`, or the `Interval` that fits generations of any length.
    """

    def __init__(
        self, unet: UNet, owner: Pipeline | UNet, plan: CachePlan | Interval, counts: Counts, kernel: Steps
    ) -> None:
        self.plan = plan
        self._unet, self._owner, self._kernel = unet, owner, kernel
        self._outer, self._compiled = _seen(owner)
        self._tracker = Tracker(unet, owner, plan, counts)
        self._examples: dict[Fingerprint, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._switch = threading.Lock()
        self._installed: Installed | None = None
        self._is_enabled = False

    def __enter__(self) -> Self:
        """Answer the calls of this thread or task until the block ends.

        Raises:
            DeepCacheError: the cache is in use already, or the U-Net has been replaced or compiled.
        """
        with self._switch:
            if self._installed is not None:
                raise DeepCacheError(
                    f"this cache is in use already ({'enabled' if self._is_enabled else 'in a with block'}); its block "
                    "may be shared by threads and tasks; call deepcache.cached again for another block"
                )
            self._install(for_all=False)
        return self

    def __exit__(self, *error: object) -> None:
        with self._switch:
            self._uninstall()

    def enable(self) -> Self:
        """Answer the calls of all threads and tasks that are in no block of their own, until `disable`.

        Enabling an enabled cache does nothing. If several caches of one U-Net are enabled, the last one answers.

        Returns:
            The cache itself.

        Raises:
            DeepCacheError: the cache is in a `with` block, or the U-Net has been replaced or compiled.
        """
        with self._switch:
            self._require_no_block("enable")
            if self._installed is None:
                self._install(for_all=True)
        return self

    def disable(self) -> None:
        """Stop answering calls and drop all features; a generation under way goes on uncached.

        Any thread may disable a cache. Disabling a cache that is not enabled does nothing.

        Raises:
            DeepCacheError: the cache is in a `with` block.
        """
        with self._switch:
            self._require_no_block("disable")
            self._uninstall()

    @property
    def generations(self) -> tuple[Generation, ...]:
        """What the last generations did, at most 1000, in the order in which the generations began."""
        return tuple(self._describe(facts) for facts in tuple(self._tracker.facts) if facts.calls)

    def explain(self, num_steps: int | None = None) -> Explanation:
        """Return what the plan costs on this pipeline, and the bound on its speedup; `print` shows a table.

        Args:
            num_steps: the number of U-Net calls of a generation; by default the plan's, else the pipeline's default.

        Raises:
            DeepCacheError: the number of steps is unknown, as with an interval on a bare U-Net.
            UnsupportedUNetError: the configuration does not tell the U-Net's inputs (generate once before), or the
                U-Net does not run without data, for example because it is quantised.
        """
        from deepcache.costs.explain import explain  # sampling does without

        call = next(reversed(self._examples.values()), None)
        return explain(self._owner, self.plan, num_steps, call=call)

    def reset(self) -> None:
        """Drop the features of this thread or task, so that its next U-Net call begins a new generation."""
        self._tracker.reset()

    def _require_no_block(self, act: str) -> None:
        if self._installed is not None and not self._is_enabled:
            raise DeepCacheError(
                f"cannot {act} a cache in its own with block, which begins and ends its use; call deepcache.cached "
                "again for a cache that is enabled"
            )

    def _install(self, *, for_all: bool) -> None:
        require_pipeline(self._owner)
        outer, compiled = _seen(self._owner)
        if outer is not self._outer or (compiled is not None and compiled is not self._compiled):
            raise DeepCacheError(
                "the pipeline's U-Net has been replaced or compiled since deepcache.cached was called; call it again"
            )
        self._installed, self._is_enabled = install(self._unet, outer, self, for_all=for_all), for_all

    def _uninstall(self) -> None:
        if self._installed is not None:
            uninstall(self._installed, self)
            self._installed, self._is_enabled = None, False
            self._tracker.release()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a U-Net call."""
        self._kernel.require_inputs(args, kwargs)
        timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
        active, stream = self._tracker.locate(timestep)
        try:
            return self._step(active, stream, timestep, args, kwargs)
        except BaseException:
            self._tracker.drop(active)
            raise

    def _step(
        self, active: ActiveGeneration, stream: Stream, timestep: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        fingerprint = _fingerprint(args, kwargs)
        is_same = fingerprint == stream.fingerprint
        is_full = not stream.nodes or not is_same or active.is_full()
        if is_full:
            before = stream.nodes[: self.plan.order] if is_same else ()
            stream.clear()  # frees features that are no longer needed before the step allocates memory
            output, feature = self._kernel.full(*args, **kwargs)
            constant = tuple(part.detach() if part.requires_grad else part for part in feature)
            stream.keep((Node(active.step, coordinate(timestep), constant), *before), fingerprint)
            if fingerprint not in self._examples:
                self._examples[fingerprint] = one_sample(args, kwargs)
        else:
            output = self._kernel.shallow(stream.feature(active.step, timestep), *args, **kwargs)
        active.count(fingerprint, is_full=is_full)
        return output

    def _describe(self, facts: Facts) -> Generation:
        calls = facts.calls.copy()  # another thread may be counting
        macs = CallMacs(facts.structure, self._examples, calls, self.plan.branch)
        return Generation(facts.num_steps, tuple(facts.full_steps), calls.total(), facts.feature_bytes, macs)


def _seen(owner: Pipeline | UNet) -> tuple[Any, Any]:
    """Return what a pipeline calls as its U-Net, and the compiled call of a U-Net that was compiled in place."""
    outer, _ = unet_of(owner)
    return outer, getattr(outer, "_compiled_call_impl", None)


def _fingerprint(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Fingerprint:
    """Return the shapes, types and devices of a call's tensors, and which optional inputs there are."""
    return tuple(map(_mark, args)), tuple((key, _mark(value)) for key, value in kwargs.items())


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, dict):
        return tuple((key, _mark(inner)) for key, inner in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(_mark, value))
    return type(value)

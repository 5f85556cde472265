"""`cached`: make a U-Net run only its outermost stages on most steps, and predict the rest from earlier full steps."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deepcache.cache.generation import ActiveGeneration, Fingerprint, Generation, Kind, Stream
from deepcache.cache.installing import Installed, install, uninstall
from deepcache.cache.prediction import Halves, Node, Predictor, coordinate, predictor
from deepcache.cache.steps import Compile, CompiledSteps, compiler, compiler_of
from deepcache.cache.tracking import Tracker
from deepcache.errors import DeepCacheError
from deepcache.plan import AUTO, IDLE, CachePlan, Interval, Order, highest
from deepcache.unets.calls import Call, fingerprint, one_sample, sample_of, timestep_of
from deepcache.unets.family import Feature, Steps
from deepcache.unets.output import Form, is_predicted
from deepcache.unets.pipelines import Owner, require_pipeline, unet_of
from deepcache.unets.registry import cut

if TYPE_CHECKING:
    from deepcache.costs.explain import Explanation


def cached(
    pipe_or_unet: Owner,
    plan: CachePlan | Interval | None = None,
    *,
    interval: int | None = None,
    branch: int | None = None,
    order: Order | None = None,
    last_step_full: bool = False,
    num_steps: int | None = None,
    calls_per_step: int | None = None,
    compile: Compile = None,  # noqa: A002 (torch's word)
    cuda_graphs: bool = False,
) -> Cache:
    """Return a cache for the U-Net of a diffusers pipeline, or for a bare U-Net.

    A full step runs the whole U-Net and keeps one deep feature; a shallow step runs only the outermost stages and
    predicts the deep feature from the last full steps; an idle step predicts the output and runs nothing. Use the cache
    for a block, which gives the U-Net back at its end, or from `cache.enable()` to `cache.disable()`; before that,
    nothing is installed:

        with deepcache.cached(pipe, interval=3, branch=0, order=1) as cache:
            image = pipe("a red sneaker").images[0]
        cache.generations[-1].full_steps

    **Threads and tasks.** The innermost block that a thread or asyncio task is in answers its calls; else the cache
    that was enabled last; else the only open block, whose threads may be calling. If several blocks are open, such a
    call is refused. Each thread and task has generations of its own. Coroutines that are stepped by hand
    share one context: wrap each in a task, or run all of them in one block.

    **Steps.** A timestep that is an element of a longer tensor, as every pipeline passes it, tells the step and the
    generation by its place in memory. A number or a copy is matched by value with the pipeline's timesteps. Where
    that fails, pass `num_steps`, or a plan together with a bare U-Net, and call `cache.reset()` after a generation that
    stopped early. A view of a copy of its own counts as a generation of one step, which is full and so never wrong.
    Gradients flow through the stages that a step runs; a kept feature is a constant.

    Args:
        pipe_or_unet: a diffusers pipeline, any object with a U-Net (`.unet` or `.model`) and a scheduler (`.scheduler`
            or `.noise_scheduler`), or a network of any class (docs/unets.md); compiled or not.
        plan: the full steps of a generation of `plan.num_steps` steps, or an `Interval`, which fits any number.
        interval: instead of a plan, N, at least 1: steps 0, N, 2N, ... are full; 1 caches nothing.
        branch: with `interval`: b, 0 by default; the skips 0..b stay live on a shallow step. At -1 no skip is live, and
            every step that is not full is idle; any network can be cached so, also a pipeline's transformer.
        order: with `interval`: 0 reuses the last feature, as in the paper; 1 and 2 extrapolate; "auto" (the default)
            takes the highest order that is safe for the interval and the guidance.
        last_step_full: with `interval`: whether the last step is full as well; this needs a known number of steps.
        num_steps: the number of steps of a generation, at least 1, where timesteps tell nothing, or where a pipeline
            calls its U-Net at some of its timesteps only.
        calls_per_step: the number of U-Net calls in every step, at least 1; by default all calls at one timestep of a
            pipeline are one step, and every call of a bare U-Net is a step.
        compile: a mode of `torch.compile`, or a dict of its arguments; with None, the steps are compiled if the U-Net
            is, and in the same way.
        cuda_graphs: refused; `compile="reduce-overhead"` captures CUDA graphs.

    Raises:
        DeepCacheError: an argument is out of its range. In use: another package has replaced the U-Net's `forward`, or
            the generation or the step of a call cannot be told.
        UnsupportedUNetError: the pipeline, the U-Net or (in use, before anything runs) an input cannot be cached.

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
            "expected plan= alone, or interval= (with branch=, order= and last_step_full= where wanted), "
            f"got plan {plan!r}, interval {interval!r}, {', '.join(f'{k} {v!r}' for k, v in extras.items())}"
        )
    if plan is not None and not isinstance(plan, (CachePlan, Interval)):
        raise DeepCacheError(f"expected plan to be a CachePlan, got {plan!r}; a number of steps goes to interval=")
    given = {name: value for name, value in extras.items() if value is not None}
    chosen = plan or Interval(interval, **given)  # type: ignore[arg-type]
    tracker = Tracker(unet, pipe_or_unet, chosen, num_steps, calls_per_step)
    eager, how = cut(unet, chosen.branch), compiler(compile) or compiler_of(outer)
    return Cache(pipe_or_unet, chosen, tracker, eager if how is None else CompiledSteps(eager, how))


class Cache:
    """A U-Net's cache, which `cached` makes: it answers the U-Net's calls while it is in a `with` block or enabled.

    A cache keeps its plan (`cache.plan`) and its compiled steps, and can be used again after its block or `disable`.
    """

    def __init__(self, owner: Owner, plan: CachePlan | Interval, tracker: Tracker, steps: Steps) -> None:
        self.plan = plan
        self._owner, self._tracker, self._steps = owner, tracker, steps
        self._outer, self._unet = unet_of(owner)
        self._compiled_call = _compiled_call(self._outer)
        self._examples: dict[Fingerprint, Call] = {}
        self._switch = threading.Lock()
        self._installed: Installed | None = None
        self._is_enabled = False

    def __enter__(self) -> Self:
        """Answer the calls of this thread or task until the block ends; raise a `DeepCacheError` as `enable` does."""
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

        Raises:
            DeepCacheError: the cache is in a `with` block, or the U-Net has been replaced or compiled.
        """
        with self._switch:
            self._require_no_block("enable")
            if self._installed is None:
                self._install(for_all=True)
        return self

    def disable(self) -> None:
        """Stop answering calls and drop all features, from any thread; a generation under way goes on uncached.

        A cache in its `with` block raises a `DeepCacheError`.
        """
        with self._switch:
            self._require_no_block("disable")
            self._uninstall()

    @property
    def generations(self) -> tuple[Generation, ...]:
        """What the last generations did, at most 1000, in the order in which the generations began."""
        known = tuple(self._tracker.facts)
        return tuple(facts.generation(self._examples, self.plan.branch) for facts in known if facts.calls)

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

    def step(self, number: int) -> AbstractContextManager[None]:
        """Say which step, counted from 0 in each generation, the U-Net calls of a block belong to.

        Use it in loops whose timesteps do not tell the step; every step must make as many calls as the first one:

            for i, t in enumerate(timesteps):
                with cache.step(i):
                    noise = unet(sample, t)

        Step 0 begins a generation. A call in a block that does not go on by one raises a `DeepCacheError`.
        """
        return self._tracker.step(number)

    def _require_no_block(self, act: str) -> None:
        if self._installed is not None and not self._is_enabled:
            raise DeepCacheError(
                f"cannot {act} a cache in its own with block, which begins and ends its use; call deepcache.cached "
                "again for a cache that is enabled"
            )

    def _install(self, *, for_all: bool) -> None:
        require_pipeline(self._owner)
        outer, _ = unet_of(self._owner)
        if outer is not self._outer or _compiled_call(outer) not in (None, self._compiled_call):
            raise DeepCacheError(
                "the pipeline's U-Net was replaced or compiled after deepcache.cached was called; call cached again"
            )
        self._installed, self._is_enabled = install(self._unet, outer, self, for_all=for_all), for_all

    def _uninstall(self) -> None:
        if self._installed is not None:
            uninstall(self._installed, self)
            self._installed, self._is_enabled = None, False
            self._tracker.release()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a U-Net call."""
        self._steps.require_inputs(args, kwargs)
        active, stream, timestep = self._tracker.locate(timestep_of(self._unet, args, kwargs))
        timestep = active.step if timestep is None else timestep  # a step that `step` tells may have no other number
        try:
            form = fingerprint((args, kwargs))
            kind = active.kind(stream, form)
            if kind is Kind.IDLE:
                assert stream.form is not None
                output = stream.form.output(_predicted(stream.outputs, active.step, timestep))
            elif kind is Kind.SHALLOW:
                output = self._steps.shallow(_predicted(stream.features, active.step, timestep), *args, **kwargs)
                if self.plan.has_idle_steps:
                    self._keep_output(active, stream, timestep, output, self._last(stream.outputs))
            else:
                if form != stream.fingerprint:
                    stream.clear()
                features, outputs = self._last(stream.features), self._last(stream.outputs)
                stream.clear()  # frees the oldest feature before the step allocates memory
                output, feature = self._steps.full(*args, **kwargs)
                if form != stream.fingerprint:
                    stream.fingerprint = form
                    stream.halves = self._halves(active, output, feature, args, kwargs)
                if self.plan.branch != IDLE:
                    stream.features = self._predictor(active, stream, timestep, feature, features)
                if self.plan.has_idle_steps:
                    self._keep_output(active, stream, timestep, output, outputs)
                if form not in self._examples:
                    self._examples[form] = one_sample(args, kwargs)
            if kind is not Kind.IDLE:
                active.pair()
            active.count(form, kind)
        except BaseException:
            self._tracker.drop(active)
            raise
        return output

    def _halves(
        self, active: ActiveGeneration, output: Any, feature: Feature, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Halves:
        """Return where the halves of guidance are; one call has both where its batch is one half twice."""
        if self.plan.order != AUTO:
            return Halves.NONE
        outputs = [*filter(is_predicted, pytree.tree_leaves(output))]
        sample = sample_of(args, kwargs, next(iter(outputs), None))
        if len(sample) % 2 == 0 and torch.equal(*sample.chunk(2)):
            predicted = (*feature, *outputs) if self.plan.has_idle_steps else feature
            return Halves.TOGETHER if all(_is_batched(part, sample) for part in predicted) else Halves.HIDDEN
        return Halves.NONE if active.read_guidance() in (None, 1) else Halves.APART

    def _last(self, known: Predictor | None) -> tuple[Node, ...]:
        """Return the nodes that are still needed when another one comes."""
        return () if known is None else known.nodes[: highest(self.plan.order)]

    def _keep_output(
        self, active: ActiveGeneration, stream: Stream, timestep: Any, output: Any, before: tuple[Node, ...]
    ) -> None:
        """Keep a copy of this output, from which idle steps are predicted; the caller may overwrite the output."""
        stream.form, tensors = Form.of(output)
        copies = tuple(tensor.detach().clone() for tensor in tensors)
        stream.outputs = self._predictor(active, stream, timestep, copies, before)

    def _predictor(
        self, active: ActiveGeneration, stream: Stream, timestep: Any, feature: Feature, before: tuple[Node, ...]
    ) -> Predictor:
        constant = tuple(part.detach() if part.requires_grad else part for part in feature)
        nodes = (Node(active.step, coordinate(timestep), constant), *before)
        return predictor(nodes, self.plan.order, active.setting(stream.halves))


def _predicted(known: Predictor | None, step: int, timestep: Any) -> Feature:
    assert known is not None
    return known(step, timestep)


def _is_batched(part: Tensor, sample: Tensor) -> bool:
    """Return whether a tensor begins with the batch of a sample; of a video, with the batch times the frames."""
    is_folded = sample.ndim == 5 and part.ndim < 5
    return part.ndim > 0 and (len(part) == len(sample) or (is_folded and len(part) % len(sample) == 0))


def _compiled_call(outer: Any) -> Any:
    """Return the compiled call of a U-Net that was compiled in place."""
    return getattr(outer, "_compiled_call_impl", None)

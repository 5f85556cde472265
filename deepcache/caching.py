"""`cached`: a U-Net whose shallow steps take the deep feature from the last full step."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from deepcache.errors import DeepCacheError, UnsupportedUNetError
from deepcache.forward import full_forward, shallow_forward
from deepcache.macs import Cost, cost, require_branch, to_meta
from deepcache.plan import CachePlan, require_whole
from deepcache.unets import StagedUNet


@dataclass(frozen=True)
class Generation:
    """What one generation did.

    Attributes:
        num_steps: U-Net calls.
        full_steps: those that were full, in order.
        macs: mean over the steps, for one sample of the last size, in the paper's convention (`deepcache.macs`).
        feature_bytes: size of the feature that was kept.
    """

    num_steps: int
    full_steps: tuple[int, ...]
    macs: int
    feature_bytes: int


@contextmanager
def cached(
    pipe_or_unet: Any, plan: CachePlan | None = None, *, interval: int | None = None, branch: int | None = None
) -> Iterator[Cache]:
    """Cache a U-Net's deep feature inside a `with` block, and restore the U-Net after it.

        with deepcache.cached(pipe, interval=3, branch=0) as cache:
            image = pipe("a red sneaker").images[0]
        cache.generations[-1].full_steps

    Args:
        pipe_or_unet: a diffusers pipeline, anything with `.unet` and `.scheduler`, or a bare U-Net. A generation
            begins when this scheduler's timesteps are set; for a bare U-Net, on entry and on `cache.reset()`. Call
            that too before another pipeline uses the same U-Net inside the block.
        plan: the full steps and the branch; its `num_steps` must be the generation's.
        interval: instead of a plan, N: steps 0, N, 2N, ... are full; 1 caches nothing.
        branch: with `interval`: the skips 0..branch stay live on a shallow step; 0 if not given.

    Yields:
        The `Cache`, which tells what each generation did.

    Raises:
        DeepCacheError: an argument out of range, or a U-Net that is cached already.
        UnsupportedUNetError: a U-Net, or one of its inputs, that cannot be cached; before anything runs.

    References:
        DeepCache: Accelerating Diffusion Models for Free (Ma et al., 2024), https://arxiv.org/abs/2312.00858
    """
    unet = getattr(pipe_or_unet, "unet", pipe_or_unet)
    staged = StagedUNet(unet)
    if (plan is None) == (interval is None) or (plan is not None and branch is not None):
        raise DeepCacheError(
            "expected either a plan (which has its branch) or an interval (with a branch), "
            f"got plan {plan!r}, interval {interval!r}, branch {branch!r}"
        )
    if plan is None:
        require_whole("interval", interval, at_least=1)
    chosen = plan.branch if plan is not None else 0 if branch is None else branch
    require_branch(chosen, staged.nest.num_branches)
    _require_own_forward(unet)
    cache = Cache(staged, pipe_or_unet, chosen, plan=plan, interval=interval or 1)
    unet.forward = cache
    try:
        yield cache
    finally:
        del unet.forward
        cache.release()


@dataclass
class _Run:
    """One generation under way, of one thread."""

    timesteps: Any
    num_steps: int | None
    step: int = 0
    full_steps: list[int] = field(default_factory=list)
    feature: Tensor | None = None
    feature_bytes: int = 0
    fingerprint: tuple[Any, ...] = ()
    example: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})


class Cache:
    """Stands in for a U-Net's `forward` and owns the state of its generations, one a thread at a time."""

    def __init__(self, staged: StagedUNet, owner: Any, branch: int, *, plan: CachePlan | None, interval: int) -> None:
        self.branch = branch
        self._staged, self._owner, self._plan, self._interval = staged, owner, plan, interval
        self._local = threading.local()
        self._runs: list[_Run] = []
        self._costs: dict[tuple[Any, ...], Cost] = {}

    @property
    def generations(self) -> tuple[Generation, ...]:
        """All generations since the block was entered, in the order in which they began."""
        return tuple(self._describe(run) for run in self._runs if run.step)

    def reset(self) -> None:
        """Drop this thread's feature: its next U-Net call begins a new generation."""
        run = self._current()
        if run is not None:
            run.feature = None
        self._local.run = None

    def release(self) -> None:
        """Drop every thread's feature; the generations' facts stay."""
        for run in self._runs:
            run.feature = None
        self._local = threading.local()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = self._current()
        scheduler = getattr(self._owner, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        if run is None or run.timesteps is not timesteps:
            run = self._begin(timesteps, scheduler)
        if run.step == run.num_steps:
            raise DeepCacheError(
                f"expected {run.num_steps} U-Net calls in this generation, and this is one more; make the plan for as "
                "many steps as you sample, and call cache.reset() before a new generation of a bare U-Net or of "
                "another pipeline on this U-Net; a pipeline that runs the U-Net twice a step (conditional and "
                "unconditional apart) cannot be cached yet"
            )
        fingerprint = _fingerprint(args, kwargs)
        if run.feature is None or fingerprint != run.fingerprint or self._is_full(run.step):
            if fingerprint != run.fingerprint:
                run.example = to_meta(args), to_meta(kwargs)
            output, run.feature = full_forward(self._staged, self.branch, *args, **kwargs)
            run.fingerprint = fingerprint
            run.feature_bytes = run.feature.numel() * run.feature.element_size()
            run.full_steps.append(run.step)
        else:
            output = shallow_forward(self._staged, self.branch, run.feature, *args, **kwargs)
        run.step += 1
        if run.step == run.num_steps:
            run.feature = None
        return output

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a cached U-Net, pickled or deep, is an ordinary U-Net."""
        return getattr, (self._staged.unet, "forward")

    def _current(self) -> _Run | None:
        return getattr(self._local, "run", None)

    def _begin(self, timesteps: Any, scheduler: Any) -> _Run:
        self.reset()
        self._local.run = run = _Run(timesteps, self._length(timesteps, getattr(scheduler, "begin_index", None)))
        self._runs.append(run)
        return run

    def _is_full(self, step: int) -> bool:
        return step % self._interval == 0 if self._plan is None else step in self._plan.full_steps

    def _length(self, timesteps: Any, begin_index: int | None) -> int | None:
        """Of the generation that begins; a plan may be for fewer steps only where the begin is not known (img2img)."""
        left = None if timesteps is None else len(timesteps) - (begin_index or 0)
        if self._plan is None or left is None:
            return left if self._plan is None else self._plan.num_steps
        if self._plan.num_steps > left or (begin_index is not None and self._plan.num_steps < left):
            raise DeepCacheError(
                f"the plan is for {self._plan.num_steps} U-Net calls and this generation makes {left}; make the plan "
                f"with num_steps={left}, or pass interval=N, which fits any length"
            )
        return self._plan.num_steps

    def _describe(self, run: _Run) -> Generation:
        args, kwargs = run.example
        if run.fingerprint not in self._costs:
            self._costs[run.fingerprint] = cost(self._staged.unet, *args, **kwargs)
        done = CachePlan(run.step, tuple(run.full_steps), self.branch)
        macs = round(self._costs[run.fingerprint].mean(done))
        return Generation(done.num_steps, done.full_steps, macs, run.feature_bytes)


def _fingerprint(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
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


def _require_own_forward(unet: Any) -> None:
    blocks = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    if any(block is not None and "forward" in vars(block) for block in blocks):
        raise UnsupportedUNetError(
            "expected blocks with their own forward; another package replaced one; remove that first"
        )
    replaced = vars(unet).get("forward")
    if isinstance(replaced, Cache):
        raise DeepCacheError(
            "this U-Net is cached already; leave the other `with deepcache.cached(...)` block before you enter another"
        )
    if replaced is not None and getattr(replaced, "__func__", None) is not type(unet).forward:
        name = getattr(replaced, "__qualname__", type(replaced).__qualname__)
        raise DeepCacheError(
            f"expected a U-Net with its own forward; it was replaced by {name} (an accelerate hook or another "
            "package); remove that first"
        )

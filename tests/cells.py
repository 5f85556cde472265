"""The cells of docs/support.md: each cell runs `cached` on something that it may or may not cache.

A cell is one of:

- `exact`: the output is bit for bit the uncached output, and the mid block runs on the full steps of the plan alone;
- `refused: ...`: `cached` names the reason before the U-Net runs;
- `-`: diffusers has no such combination; without a cache it raises, gives no finite number, or ignores the option.

Anything else is an AssertionError.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import cache, partial
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from deepcache import UnsupportedUNetError, cached
from deepcache.unets.calls import parameters
from deepcache.unets.pipelines import unet_of
from tests.optional import OPTIONAL, TIMESTEPS, TRIED
from tests.pipelines import Workload, counted, is_default, options, scheduler, takes, workload
from tests.problems import NAMES as UNETS
from tests.problems import PROBLEMS, at, inputs, num_branches, shared, twice, unet
from tests.storage import STORAGE
from tests.transformer_pipelines import whole

EXACT, NOTHING, REFUSED = "exact", "-", "refused: "
NUM_STEPS = 4  # PNDM's fewest
FEWER_STEPS = 3  # a shallow step between two full ones
BRANCHES = ("branch 0", "half way", "deepest branch")
_STORED = "sd-1.5"
Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]  # a U-Net and the arguments of its forward


def verdict(
    work: Workload,
    intervals: Sequence[int] = (2,),
    num_steps: int = NUM_STEPS,
    also_full: Iterable[int] = (),
    **changes: Any,
) -> str:
    """Return the cell of a pipeline.

    Args:
        work: the pipeline and its conditions.
        intervals: the intervals at which full steps are counted.
        num_steps: the number of steps that the pipeline is asked for.
        also_full: steps that must be full for another reason than the interval.
        **changes: changes of the conditions.
    """
    try:
        expected = work.run(num_steps, **changes)
    except Warning:
        raise
    except Exception:  # whatever diffusers raises
        return NOTHING
    if not expected.isfinite().all():
        return NOTHING
    with counted(work.unet) as ran:
        try:
            with cached(work.owner, interval=1):
                found = work.run(num_steps, **changes)
        except UnsupportedUNetError as refusal:
            assert not ran, "refused after the U-Net ran"
            return f"{REFUSED}{refusal}"
    assert torch.equal(found, expected), "interval 1 differs from uncached"
    for interval in intervals:
        with counted(work.unet) as ran, cached(work.owner, interval=interval):
            work.run(num_steps, **changes)
        assert ran == work.pattern(len(ran), interval, also_full), f"at interval {interval} the mid block ran {ran}"
    return EXACT


@cache
def of_scheduler(name: str, pipeline: str, option: str | None = None) -> str:
    if not takes(name, option):
        return NOTHING
    intervals = (2, 3) if (pipeline, option) == ("text2img", None) else (2,)
    num_steps = NUM_STEPS if option is None or name == "PNDMScheduler" else FEWER_STEPS
    return verdict(workload(pipeline, scheduler(name, option)), intervals, num_steps)


def of_option(name: str, option: str) -> str:
    """Return the cell of an option; an option that is the scheduler's default has the cell without options."""
    if option not in options(name):
        return NOTHING
    return of_scheduler(name, "text2img", None if is_default(name, option) else option)


@cache
def of_pipeline(name: str, way: str) -> str:
    return WAYS[way](workload(name))


def _plain(work: Workload) -> str:
    return verdict(work, (2, 3), 6)


def _unguided(work: Workload) -> str:
    return verdict(work, guided=False) if work.guidance else NOTHING


def _several(work: Workload) -> str:
    return verdict(work, **work.several) if work.several else NOTHING


def _dynamic(work: Workload) -> str:
    """Turn guidance off after step 1, as diffusers documents it: the batch shrinks, and step 2 is full."""
    if work.parts == 1:
        return NOTHING

    def last_part(value: Any) -> Any:
        if isinstance(value, list):
            return [last_part(inner) for inner in value]
        return value.chunk(work.parts)[-1] if len(value) % work.parts == 0 else value

    def turn_off(pipe: Any, step: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            pipe._guidance_scale = 0.0
        return {name: last_part(value) if step == 1 else value for name, value in given.items()}

    names = getattr(work.pipe, "_callback_tensor_inputs", [])
    callback = {"callback_on_step_end": turn_off, "callback_on_step_end_tensor_inputs": names}
    return verdict(work, (3,), 6, also_full=(2,), **callback)


def _interrupted(work: Workload) -> str:
    """Stop after two steps; the next generation must be what it is without the stopped one."""

    def stop(pipe: Any, step: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return given

    with counted(work.unet) as ran:
        cell = verdict(work, (), callback_on_step_end=stop)
    if cell != EXACT or len(ran) != 2 * 2 * work.calls:
        return cell if cell.startswith(REFUSED) else NOTHING
    with cached(work.owner, interval=3):
        expected = work.run()
    with cached(work.owner, interval=3):
        work.run(callback_on_step_end=stop)
        assert torch.equal(work.run(), expected), "an interrupted generation changes the next one"
    return EXACT


WAYS: dict[str, Callable[[Workload], str]] = {
    "plain": _plain,
    "without guidance": _unguided,
    "two at once": _several,
    "guidance off midway": _dynamic,
    "interrupted before": _interrupted,
}


def of_unet(name: str, branch: str) -> str:
    """Return the cell of a small U-Net of a known family, or of another class of diffusers with its defaults."""
    if name not in UNETS:
        return _of_foreign(name)
    last = num_branches(name) - 1
    depth = dict(zip(BRANCHES, (0, last // 2, last), strict=True))
    return _of_call((shared(name), *inputs(name)), depth[branch])


@cache
def _foreign(name: str) -> nn.Module:
    with torch.device("meta"):
        return getattr(diffusers, name)()


def _of_foreign(name: str) -> str:
    model, refusals = _foreign(name), []
    try:
        with cached(model, interval=2):
            pass
    except UnsupportedUNetError as refusal:
        refusals.append(str(refusal))
    assert refusals, f"{name} is of no known family, and was not refused"
    assert name in refusals[0], f"refused, but not by name: {refusals[0]}"
    return REFUSED + refusals[0]


def of_storage(name: str, branch: str) -> str:
    """Return the cell of a U-Net with another storage of weights; the oracle is the same U-Net without a cache."""
    model = unet(_STORED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's dynamic int8 is announced to be dropped
        STORAGE[name](model)
    return of_stored(model, branch)


def of_stored(model: nn.Module, branch: str) -> str:
    """Return the cell of a U-Net of the topology `_STORED` with any storage of weights."""
    last = num_branches(_STORED) - 1
    depth = dict(zip(BRANCHES, (0, last // 2, last), strict=True))
    return _of_call((model, *inputs(_STORED)), depth[branch])


def of_refused(name: str) -> str:
    """Return the refusal of a pipeline, which is made without its parts, since nothing of it runs."""
    kind = getattr(diffusers, name)
    pipe = kind.__new__(kind)
    pipe.unet = shared("sd-1.5")
    refusals = []
    try:
        with cached(pipe, interval=2):
            pass
    except UnsupportedUNetError as refusal:
        refusals.append(str(refusal))
    assert refusals, f"{name} was not refused"
    return refusals[0]


def of_whole(name: str, branch: str) -> str:
    """Return the cell of a network that has branch -1 alone."""
    owner, run = whole(name)
    expected, ran, how = run(), [], {"branch": int(branch.removeprefix("branch "))}
    _, network = unet_of(owner)
    with network.register_forward_pre_hook(lambda *_: ran.append(1)):
        try:
            with cached(owner, interval=1, **how):
                assert torch.equal(run(), expected), "interval 1 differs from uncached"
        except UnsupportedUNetError as refusal:
            assert not ran, "refused after the network ran"
            return f"{REFUSED}{refusal}"
    with cached(owner, interval=2, **how) as cache:
        run()
    assert cache.generations[0].full_steps == tuple(range(0, cache.generations[0].num_steps, 2)), "not as planned"
    return EXACT


@cache
def of_input(option: str, family: str) -> str:
    """Return the cell of an optional input on the U-Nets of a family that it is tried on, at least one."""
    known = [name for name in UNETS if PROBLEMS[name][0].__name__ == family]
    tried = [name for name in _TRIED.get(option, ()) if name in known] or [n for n in _ONE_A_FAMILY if n in known]
    cells = {_of_input(option, name) for name in tried} - {NOTHING}
    assert len(cells) <= 1, f"{option} of {family}: {cells}"
    return cells.pop() if cells else NOTHING


def _of_input(option: str, name: str) -> str:
    try:
        call, other = INPUTS[option](name), INPUTS[option](name, seed=1)
        is_noticed = not torch.equal(_output(call), _output(other))
    except Warning:
        raise
    except Exception:  # whatever diffusers raises
        return NOTHING
    return _of_call(call, 0) if is_noticed else NOTHING


def _of_call(call: Call, branch: int) -> str:
    """Return the cell of a call: a full and a shallow step on its inputs give what the U-Net gives."""
    model, ran = call[0], []
    expected = _output(call)
    with model.conv_in.register_forward_pre_hook(lambda *_: ran.append(1)):
        try:
            with cached(model, interval=2, branch=branch):
                found = [_output(call, t) for t in twice(*call)]
        except UnsupportedUNetError as refusal:
            assert not ran, "refused after the U-Net ran"
            return f"{REFUSED}{refusal}"
    for kind, output in zip(("full", "shallow"), found, strict=True):
        assert torch.equal(output, expected), f"a {kind} step differs from forward"
    return EXACT


def _output(call: Call, timestep: Tensor | None = None) -> Tensor:
    model, *given = call
    args, kwargs = deepcopy(given)
    if timestep is not None:  # a copy would not tell its step
        args, kwargs = at(timestep, args, kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers deprecates some forms of an input
        return model(*args, **kwargs)[0]


def _with_timestep(form: str, name: str, *, seed: int = 0) -> Call:
    return shared(name), *inputs(name, seed=seed, timestep=TIMESTEPS[form])


def _class_labels(name: str, *, seed: int = 0) -> Call:
    args, kwargs = inputs(name)
    return unet(name, num_class_embeds=10), args, {**kwargs, "class_labels": torch.tensor([3, 4 + seed])}


def _timestep_condition(name: str, *, seed: int = 0) -> Call:
    args, kwargs = inputs(name)
    condition = torch.randn((2, 6), generator=torch.Generator().manual_seed(seed))
    return unet(name, time_cond_proj_dim=6), args, {**kwargs, "timestep_cond": condition}


def _as_tuple(name: str, *, seed: int = 0) -> Call:
    args, kwargs = inputs(name, seed=seed)
    return shared(name), args, {**kwargs, "return_dict": False}


def _by_keyword(name: str, *, seed: int = 0) -> Call:
    args, kwargs = inputs(name, seed=seed)
    return shared(name), (), {**dict(zip(parameters(type(shared(name))), args, strict=False)), **kwargs}


def _by_position(name: str, *, seed: int = 0) -> Call:
    model, _, given = _by_keyword(name, seed=seed)
    names = parameters(type(model))
    return model, tuple(given.get(key) for key in names[: 1 + max(map(names.index, given))]), {}


def _deprecated_adapter(name: str, *, seed: int = 0) -> Call:
    model, args, kwargs = OPTIONAL["T2I-Adapter"](name, seed=seed)
    return model, args, {"down_block_additional_residuals": kwargs["down_intrablock_additional_residuals"]}


INPUTS: dict[str, Callable[..., Call]] = {
    **OPTIONAL,
    "class labels": _class_labels,
    "timestep condition": _timestep_condition,
    "T2I-Adapter, deprecated form": _deprecated_adapter,
    **{f"timestep: {form}": partial(_with_timestep, form) for form in TIMESTEPS},
    "all by position": _by_position,
    "all by keyword": _by_keyword,
    "return_dict=False": _as_tuple,
}
_TRIED = {name: names for name, names in TRIED.items() if INPUTS[name] is OPTIONAL[name]}
_TRIED["T2I-Adapter, deprecated form"] = TRIED["T2I-Adapter"]
_ONE_A_FAMILY = ("ddpm-classes", "sdxl", "animatediff-sdxl", "modelscope", "svd", "i2vgen-xl")

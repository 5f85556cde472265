"""A racer runs a U-Net over the steps of a generation: uncached, by the older package, or by this library."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler
from matplotlib.figure import Figure

from bench.harness.memory import PeakMemory
from deepcache.cache.caching import cached
from deepcache.errors import needs
from deepcache.plan import DEFAULT_ORDER, CachePlan, Order, highest
from deepcache.unets.calls import Call

UNCACHED, OLDER, OURS = "uncached", "DeepCache 0.1.1", "this library"
IDLE = f"{OURS}, idle"
COMPILED: dict[str, Any] = {"compile": "default"}
GRAPHS: dict[str, Any] = {"compile": "reduce-overhead"}  # torch captures CUDA graphs
CHANNELS_LAST: dict[str, Any] = {"memory_format": torch.channels_last}
OUR_COLOUR, OLDER_COLOUR = "#0072B2", "#D55E00"  # as in the Pareto plots


@dataclass(frozen=True)
class Entry:
    """A way to run, with the name of its base: the uncached way of the same compilation and layout.

    `order` is the prediction's; `how` holds the options of compilation or the memory layout; `is_idle` says that the
    steps which are not full are idle.
    """

    name: str
    base: str
    order: Order = 0
    how: Mapping[str, Any] | None = None
    is_idle: bool = False

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)

    @property
    def is_eager(self) -> bool:
        return not self.how or self.how == CHANNELS_LAST

    @property
    def exact(self) -> str:
        """The name of the eager entry of the same plan and order, which gives the same outputs but for rounding."""
        if self.base == self.name:
            return UNCACHED
        if self.is_idle:
            return IDLE
        return f"{OURS}, order {self.order}" if self.order else OURS


def entries(device: torch.device) -> list[Entry]:
    """Return all entries that can run on a device."""
    hows: dict[str, dict[str, Any]] = {"": {}, ", channels last": CHANNELS_LAST, ", compiled": COMPILED}
    if device.type == "cuda":
        hows |= {", compiled, CUDA graphs": GRAPHS}
    found: list[Entry] = []
    for suffix, how in hows.items():
        base = f"{UNCACHED}{suffix}"
        found += [Entry(base, base, how=how), Entry(f"{OURS}{suffix}", base, how=how)]
        found.append(Entry(f"{IDLE}{suffix}", base, DEFAULT_ORDER, how, is_idle=True))
    return [*found[:3], Entry(f"{OURS}, order 1", UNCACHED, 1), Entry(OLDER, UNCACHED), *found[3:]]


@dataclass(eq=False)
class Racer:
    """An entry that runs, within `entered`, on a U-Net of its own; the weights are shared with the other racers."""

    entry: Entry
    plan: CachePlan
    pipe: Any
    call: Call
    handle: Any = None

    @contextmanager
    def entered(self) -> Iterator[Racer]:
        with self._entered() as self.handle, torch.no_grad():
            yield self

    def outputs(self) -> Iterator[torch.Tensor]:
        """Yield the output of each step of a generation, all on the same input; no output is kept here."""
        (sample, _, *rest), kwargs = self.call
        self.pipe.scheduler.set_timesteps(self.plan.num_steps, device=sample.device if sample.is_cuda else None)
        for t in self.pipe.scheduler.timesteps:
            yield self.pipe.unet(sample, t, *rest, **kwargs).sample

    def generation(self) -> None:
        """Run all steps of a generation."""
        for _ in self.outputs():
            pass

    def error(self, exact: list[torch.Tensor]) -> float:
        """Return the largest difference to the exact outputs, relative to the largest value of the exact output."""
        pairs = zip(self.outputs(), exact, strict=True)
        return max(float((found - other).abs().max() / other.abs().max()) for found, other in pairs)

    def seconds(self) -> float:
        """Return the seconds of a generation, until the device has finished it."""
        start = _now(self.call[0][0].device)
        self.generation()
        return _now(self.call[0][0].device) - start

    def feature_bytes(self) -> int:
        """Return the bytes that are kept from step to step."""
        if self.entry.name == OLDER:
            kept = [part for value in self.handle.cached_output.values() for part in _tensors(value)]
            return sum({part.untyped_storage().data_ptr(): part.nbytes for part in kept}.values())
        return self.handle.generations[-1].feature_bytes if self.entry.is_ours else 0

    def num_features(self) -> int:
        """Return how many tensors are kept from step to step."""
        if self.entry.name == OLDER:
            return len({part.data_ptr() for value in self.handle.cached_output.values() for part in _tensors(value)})
        return highest(self.entry.order) + 1 if self.entry.is_ours else 0

    def peak_bytes(self) -> int | None:
        """Return the most bytes that a generation holds beside the weights; None where they cannot be counted."""
        device = self.call[0][0].device
        if device.type == "cuda":
            if self.entry.name == OLDER:
                self.handle.cached_output.clear()  # these tensors of the last generation are counted as the next one's
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.generation()
            return torch.cuda.max_memory_allocated(device) - before
        if not self.entry.is_eager:
            return None
        with PeakMemory() as memory:
            self.generation()
        return memory.peak

    def _entered(self) -> AbstractContextManager[Any]:
        how = {name: value for name, value in (self.entry.how or {}).items() if name != "memory_format"}
        if self.entry.name == OLDER:
            return _older(self.pipe, self.plan)
        if self.entry.is_ours:
            return cached(self.pipe, self.plan, **how)
        if "compile" in how:
            self.pipe.unet = torch.compile(self.pipe.unet, mode=how["compile"], dynamic=False)
        return nullcontext()


@contextmanager
def _older(pipe: Any, plan: CachePlan) -> Iterator[Any]:
    with needs("the race", "upstream"):
        from DeepCache import DeepCacheSDHelper
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=plan.full_steps[1], cache_branch_id=plan.branch)
    helper.enable()
    yield helper
    helper.disable()


def racer(entry: Entry, unet: Any, plan: CachePlan, call: Call) -> Racer:
    """Return a racer on a copy of the U-Net's modules, which shares the weights unless the layout is another."""
    layout = (entry.how or {}).get("memory_format")
    weights = {} if layout else {id(each): each for each in chain(unet.parameters(), unet.buffers())}
    copy = deepcopy(unet, weights)
    pipe = SimpleNamespace(unet=copy.to(memory_format=layout) if layout else copy, scheduler=DDIMScheduler())
    own = CachePlan(plan.num_steps, plan.full_steps, plan.branch, entry.order)
    return Racer(entry, own, pipe, call)


def host_seconds(one: Racer, rounds: int) -> float | None:
    """Return the host's seconds to launch a step, the median over rounds; None where the host is the device."""
    device = one.call[0][0].device
    if device.type != "cuda":
        return None
    times = []
    for _ in range(rounds):
        start = _now(device)
        one.generation()
        times.append(time.perf_counter() - start)
    return median(times) / one.plan.num_steps


def interleaved(racers: Sequence[Racer]) -> dict[str, float]:
    """Run one round, and return the seconds of each racer's generation by its entry's name."""
    return {one.entry.name: one.seconds() for one in racers}


def figure(speedups: Mapping[str, float], bounds: Mapping[str, float]) -> Figure:
    """Draw speedups as bars, each with the bound that its plan's MACs set.

    Args:
        speedups: by an entry's name, over the uncached U-Net of the same compilation and layout; uncached entries are
            left out.
        bounds: by an entry's name, the speedup if time went by MACs alone.
    """
    shown = {name: value for name, value in speedups.items() if not name.startswith(UNCACHED)}
    found = Figure(figsize=(6.4, 0.42 * len(shown) + 1.0), layout="constrained")
    axis = found.subplots()
    bars = axis.barh(
        list(shown), list(shown.values()), color=[OLDER_COLOUR if name == OLDER else OUR_COLOUR for name in shown]
    )
    labels = axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    for label in labels:  # the line of the bound may run through a label
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})
    ends = [bounds[name] for name in shown]
    places = range(len(shown))
    axis.vlines(ends, [i - 0.4 for i in places], [i + 0.4 for i in places], color="0.3", label="bound by MACs")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12 * max(*ends, *shown.values()))
    axis.tick_params(labelsize=8)
    axis.set_xlabel("times faster than the uncached U-Net of the same compilation and layout", fontsize=8)
    return found


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

"""The cost of full and shallow steps in multiply-accumulates, without weights or memory (meta tensors).

The paper's convention: batch 1, guidance not doubled; convolutions and linear layers with their biases, norms
with two an element where they have weights, attention products (Q K^T and A V) left out. Its counter did not
know the group norms of the original LDM code, so LDM-4-G's published numbers are without them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from deepcache.errors import FAILURES, one_line
from deepcache.plan import CachePlan
from deepcache.unets.diffusers.stages import nest, require_branch
from deepcache.unets.diffusers.views import WRAPPED


@dataclass(frozen=True)
class Convention:
    """What counts beside convolutions, linear layers and layer norms."""

    group_norm: bool = True
    attention: bool = False

    def __str__(self) -> str:
        norms = "norms" if self.group_norm else "layer norms but not group norms"
        return (
            f"batch 1, guidance not doubled, {norms} counted, "
            f"attention products {'counted' if self.attention else 'not counted'}"
        )


PAPER = Convention()
PAPER_LDM = Convention(group_norm=False)
EVERYTHING = Convention(attention=True)


@dataclass(frozen=True)
class StageCost:
    """MACs of one stage on one sample, by kind.

    `products` of convolutions and linear layers; `biases` their biases and the layer norms; `group_norm`;
    `attention` the attention products. `products` + `attention` is what torch's `FlopCounterMode` counts.
    """

    name: str
    products: int = 0
    biases: int = 0
    group_norm: int = 0
    attention: int = 0

    def total(self, convention: Convention = PAPER) -> int:
        norms = self.group_norm if convention.group_norm else 0
        return self.products + self.biases + norms + (self.attention if convention.attention else 0)


@dataclass(frozen=True)
class Cost:
    """MACs of one U-Net at one input size, by stage.

    `outside` is what runs on every step whatever the branch: embeddings and the last convolution.
    """

    outside: StageCost
    down: tuple[StageCost, ...]
    mid: StageCost
    up: tuple[StageCost, ...]

    @property
    def num_branches(self) -> int:
        return len(self.down)

    @property
    def stages(self) -> tuple[StageCost, ...]:
        """In the order of execution, `outside` first."""
        return (self.outside, *self.down, self.mid, *self.up[::-1])

    def full(self, convention: Convention = PAPER) -> int:
        """A full step."""
        return sum(stage.total(convention) for stage in self.stages)

    def shallow(self, branch: int, convention: Convention = PAPER) -> int:
        """A shallow step at a branch."""
        require_branch(branch, self.num_branches)
        live = (self.outside, *self.down[: branch + 1], *self.up[: branch + 1])
        return sum(stage.total(convention) for stage in live)

    def mean(self, plan: CachePlan, convention: Convention = PAPER) -> Fraction:
        """The mean over the steps of a plan, exact."""
        shallow = self.shallow(plan.branch, convention)
        return shallow + Fraction(plan.num_full, plan.num_steps) * (self.full(convention) - shallow)

    def ratio(self, plan: CachePlan) -> float:
        """Full steps' MACs over the plan's, all of them counted: the speedup, if time were MACs."""
        return float(self.full(EVERYTHING) / self.mean(plan, EVERYTHING))


def cost(unet: Any, *args: Any, **kwargs: Any) -> Cost:
    """Count a U-Net's MACs on one call's inputs.

    Args:
        unet: on any device; nothing of it is computed or changed. LoRA and IP-Adapter layers count.
        *args, **kwargs: those of the U-Net's `forward`; tensors give their shapes alone. Their first dimension
            is taken as the batch, and the cost is that of one sample.
    """
    return _counted(on_meta(unet), *one_sample(args, kwargs))


def _counted(twin: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cost:
    """Count the MACs of a U-Net on the meta device."""
    counts: dict[nn.Module, StageCost] = {}
    with torch.no_grad(), counting(twin, counts):
        twin(*args, **kwargs)
    stages = nest(twin)
    down = tuple(_sum(stage.name, stage.modules, counts) for stage in stages.down)
    mid = _sum(stages.mid.name, stages.mid.modules, counts)
    up = tuple(_sum(stage.name, stage.modules, counts) for stage in stages.up)
    inside = {m for stage in (*stages.down, stages.mid, *stages.up) for outer in stage.modules for m in outer.modules()}
    outside = _sum("embeddings and head", tuple(module for module in counts if module not in inside), counts)
    return Cost(outside, down, mid, up)


class Structure:
    """A U-Net's modules as they were at one time, without weights: what its MACs depend on.

    Args:
        unet: the U-Net; the structure does not keep it alive.
    """

    def __init__(self, unet: nn.Module) -> None:
        self._costs: dict[Any, Cost] = {}
        self._turn = threading.Lock()
        self._twin: nn.Module | None = None
        self._failure: Exception | None = None
        try:
            self._twin = on_meta(unet)
        except FAILURES as error:
            self._failure = error

    def cost(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cost:
        """Count the MACs of one call for one sample.

        Args:
            key: calls of one key have the same cost, which is counted once.
            args, kwargs: those of the U-Net's `forward`, on the meta device.

        Raises:
            UnsupportedUNetError: the U-Net does not run without data, as with xformers' attention.
        """
        with self._turn:
            if key not in self._costs:
                with one_line(
                    "this U-Net does not run without data, by which its MACs are counted",
                    "set another attention processor, or count the MACs of its configuration: deepcache macs",
                ):
                    if self._twin is None:
                        assert self._failure is not None
                        raise self._failure
                    self._costs[key] = _counted(self._twin, args, kwargs)
            return self._costs[key]


_STRUCTURES: WeakKeyDictionary[nn.Module, tuple[list[Any], Structure]] = WeakKeyDictionary()
_SHAPING = ("out_features", "_active_adapter", "_disable_adapters", "merged_adapters")  # of peft's layers


def structure_of(unet: nn.Module) -> Structure:
    """Return the structure of a U-Net as it is now; it is taken anew only where modules or adapters have changed."""
    marks: list[Any] = []
    modules = [unet]
    while modules:
        module = modules.pop()
        names = vars(module)
        marks.append((id(module), *(str(names[name]) for name in _SHAPING if name in names)))
        modules.extend(child for child in module._modules.values() if child is not None)
    known = _STRUCTURES.get(unet)
    if known is None or known[0] != marks:
        known = _STRUCTURES[unet] = (marks, Structure(unet))
    return known[1]


def on_meta(unet: nn.Module) -> nn.Module:
    """A copy without weights, hooks and caches: `deepcopy` takes every tensor for its twin on the meta device."""
    memo: dict[int, Any] = {id(p): nn.Parameter(_shape_of(p), requires_grad=False) for p in unet.parameters()}
    memo.update({id(b): _shape_of(b) for b in unet.buffers()})
    wrappers = (vars(m)[name] for m in unet.modules() for name in WRAPPED if name in vars(m))
    memo.update({id(wrapper): None for wrapper in wrappers})  # they may hold weights
    twin = deepcopy(unet, memo)
    module: Any
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        for name in WRAPPED:
            vars(module).pop(name, None)
        if hasattr(module, "set_chunk_feed_forward"):  # a layer that runs once a chunk would be counted once
            module.set_chunk_feed_forward(chunk_size=None, dim=0)
    return twin.eval()


@contextmanager
def counting(unet: nn.Module, counts: dict[nn.Module, StageCost]) -> Iterator[None]:
    def count(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        counts[module] = _module_cost(module, args, kwargs, output)

    counted = (nn.Conv2d, nn.Conv3d, nn.Linear, nn.GroupNorm, nn.LayerNorm, Attention)
    handles = [m.register_forward_hook(count, with_kwargs=True) for m in unet.modules() if isinstance(m, counted)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _module_cost(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> StageCost:
    """Of one sample with all its frames, without the module's children."""
    size = output.numel()
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        products = size * prod(module.kernel_size) * module.in_channels // module.groups
        return StageCost("", products, biases=0 if module.bias is None else size)
    if isinstance(module, nn.Linear):  # its bias once, not once a token: the paper's counter does so
        return StageCost("", size * module.in_features, biases=0 if module.bias is None else module.out_features)
    if isinstance(module, Attention):
        return StageCost("", attention=_attention_products(module, args, kwargs))
    elementwise = size * (1 if module.weight is None else 2)
    return StageCost("", **{"group_norm" if isinstance(module, nn.GroupNorm) else "biases": elementwise})


def _attention_products(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    hidden = args[0] if args else kwargs["hidden_states"]
    context = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
    context, images = context if isinstance(context, tuple) else (context, ())  # IP-Adapter's beside the text
    queries = prod(hidden.shape[2:]) if hidden.ndim == 4 else hidden.shape[1]
    has_own = module.added_kv_proj_dim is not None and not module.only_cross_attention  # beside the context's
    keys = queries if context is None else context.shape[1] + queries * has_own
    keys += sum(prod(image.shape[1:-1]) for image in images)
    return int(2 * hidden.shape[0] * queries * keys * module.inner_dim)


def _sum(name: str, modules: tuple[nn.Module, ...], counts: Mapping[nn.Module, StageCost]) -> StageCost:
    inner = {module for outer in modules for module in outer.modules()}
    found = [counts[module] for module in inner if module in counts]
    kinds = ("products", "biases", "group_norm", "attention")
    return StageCost(name, *(sum(getattr(part, kind) for part in found) for kind in kinds))


def one_sample(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A U-Net call's arguments as shapes for one sample, on the meta device; floating point as float32.

    Where a tensor has several rows a sample (a video's frames), they stay together.
    """
    batch = len(args[0] if args else kwargs["sample"])

    def meta(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _shape_of(value[: max(len(value) // batch, 1)] if value.ndim else value)
        if isinstance(value, dict):
            return {key: meta(inner) for key, inner in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)(map(meta, value))
        return value

    return meta(args), meta(kwargs)


def _shape_of(value: Tensor) -> Tensor:
    return torch.empty_like(value, device="meta", dtype=torch.float32 if value.is_floating_point() else value.dtype)

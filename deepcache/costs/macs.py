"""The cost of full and shallow steps in multiply-accumulates (MACs), without weights or memory (meta tensors).

The paper counts for batch 1 and does not double for guidance. It counts convolutions and linear layers with their
biases, and norms with two MACs an element where they have weights; attention products (Q K^T and A V) do not count.
Its counter did not know the group norms of the original LDM code, so LDM-4-G's published numbers are without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from deepcache.plan import IDLE, CachePlan
from deepcache.unets.calls import one_sample
from deepcache.unets.family import Nest, Stage, require_branch
from deepcache.unets.registry import nest_of
from deepcache.unets.structure import on_meta


@dataclass(frozen=True)
class Convention:
    """What counts beside convolutions, linear layers and layer norms: group norms, and attention products."""

    group_norm: bool = True
    attention: bool = False

    def __str__(self) -> str:
        norms = "norms" if self.group_norm else "layer norms but not group norms"
        attention = "counted" if self.attention else "not counted"
        return f"batch 1, guidance not doubled, {norms} counted, attention products {attention}"


PAPER = Convention()
PAPER_LDM = Convention(group_norm=False)
EVERYTHING = Convention(attention=True)
_LAYERS = (_ConvNd, nn.Linear, nn.GroupNorm, nn.LayerNorm, Attention)
_KINDS = ("products", "biases", "group_norm", "attention")


@dataclass(frozen=True)
class StageCost:
    """The MACs of a stage or a layer on one sample; `products` + `attention` is half of torch's FLOPs.

    The products are those of convolutions and linear layers; layer norms count as biases.
    """

    name: str
    products: int = 0
    biases: int = 0
    group_norm: int = 0
    attention: int = 0

    def __add__(self, other: StageCost) -> StageCost:
        return StageCost(self.name, *(getattr(self, kind) + getattr(other, kind) for kind in _KINDS))

    def total(self, convention: Convention = PAPER) -> int:
        """Return the MACs that the convention counts."""
        norms = self.group_norm if convention.group_norm else 0
        return self.products + self.biases + norms + (self.attention if convention.attention else 0)


@dataclass(frozen=True)
class Cost:
    """The MACs of a U-Net at one input size, by stage; `down[i]` and `up[i]` are of skip i, `outside` of no stage."""

    outside: StageCost
    down: tuple[StageCost, ...]
    mid: StageCost
    up: tuple[StageCost, ...]

    @property
    def num_branches(self) -> int:
        return len(self.down)

    @property
    def stages(self) -> tuple[StageCost, ...]:
        """All stages in the order of execution, `outside` first."""
        return (self.outside, *self.down, self.mid, *self.up[::-1])

    def full(self, convention: Convention = PAPER) -> int:
        """Return the MACs of a full step for one sample."""
        return sum(stage.total(convention) for stage in self.stages)

    def shallow(self, branch: int, convention: Convention = PAPER) -> int:
        """Return the MACs of a shallow step for one sample, 0 of an idle one; refuse a branch that does not exist."""
        if branch == IDLE:
            return 0
        require_branch(branch, self.num_branches)
        live = (self.outside, *self.down[: branch + 1], *self.up[: branch + 1])
        return sum(stage.total(convention) for stage in live)

    def mean(self, plan: CachePlan, convention: Convention = PAPER) -> Fraction:
        """Return the MACs of a step for one sample, as the exact mean over the steps of a plan."""
        return Fraction(total_macs(plan, self.full(convention), self.shallow(plan.branch, convention)), plan.num_steps)

    def ratio(self, plan: CachePlan) -> float:
        """Return uncached over cached MACs, everything counted: the speedup, if time went as MACs."""
        return float(self.full(EVERYTHING) / self.mean(plan, EVERYTHING))


def total_macs(plan: CachePlan, full: int, shallow: int) -> int:
    """Return the MACs of all steps of a plan for one sample, from those of a full step and of a shallow step."""
    return plan.num_full * full + plan.num_shallow * shallow


def cost(unet: Any, *args: Any, **kwargs: Any) -> Cost:
    """Count the MACs of a U-Net, with its LoRA and IP-Adapter layers, for one sample of a call; nothing is computed.

    The arguments are those of the U-Net's `forward`; the first dimension of tensors is the batch.
    """
    return counted(on_meta(unet), *one_sample(args, kwargs))


def counted(twin: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], nest: Nest[Stage] | None = None) -> Cost:
    """Count the MACs of a U-Net on the meta device, for a call of one sample on the meta device, by its stages."""
    with torch.no_grad(), counting(twin) as (counts, products):
        twin(*args, **kwargs)
    nest = nest or nest_of(twin, (args, kwargs))
    stages = (*nest.down, nest.mid, *nest.up)
    stage_of = {layer: stage for stage in stages for module in stage.modules for layer in module.modules()}

    def total(stage: Stage | None, name: str) -> StageCost:
        layers = [found for layer, found in counts.items() if stage_of.get(layer) is stage]
        return StageCost(name, *(sum(getattr(layer, kind) for layer in layers) for kind in _KINDS))

    down, up = (tuple(total(stage, stage.name) for stage in row) for row in (nest.down, nest.up))
    outside = total(None, "embeddings and head")
    rest = products.macs - sum(layer.attention for layer in counts.values())  # in layers of other classes
    outside = replace(outside, attention=outside.attention + rest)
    return Cost(outside, down, total(nest.mid, nest.mid.name), up)


@contextmanager
def counting(network: nn.Module) -> Iterator[tuple[dict[nn.Module, StageCost], AttentionProducts]]:
    """Within the block, count the MACs of each layer of a network that runs, and all attention products."""
    counts: dict[nn.Module, StageCost] = {}
    before: dict[nn.Module, int] = {}  # the attention products before a layer began

    def enter(module: nn.Module, _args: Any) -> None:
        products.layers.append(module)

    def leave(*_: Any) -> None:
        products.layers.pop()

    def begin(module: nn.Module, _args: Any) -> None:
        products.layers.append(None)
        before[module] = products.macs

    def end(module: nn.Module, args: Any, output: Tensor) -> None:
        products.layers.pop()
        found = _layer_cost(module, args, output, products.macs - before[module])
        counts[module] = found + counts.get(module, StageCost(""))

    with ExitStack() as stack:
        products = stack.enter_context(AttentionProducts())
        for module in network.modules():
            if isinstance(module, _LAYERS):
                stack.enter_context(module.register_forward_pre_hook(begin))
                stack.enter_context(module.register_forward_hook(end))
            elif next(module.parameters(recurse=False), None) is not None:  # a layer of another class
                stack.enter_context(module.register_forward_pre_hook(enter))
                stack.enter_context(module.register_forward_hook(leave))
        yield counts, products
        counts |= {layer: StageCost("", found) for layer, found in products.of_layers.items()}


class AttentionProducts(TorchFunctionMode):
    """Within the block, counts the products of two activations: Q K^T and A V, in one fused function or apart.

    It also counts the convolutions and linear maps of layers that are of no class of torch's; `layers` are those under
    way, with None for a layer whose class tells its cost.
    """

    macs = 0

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[nn.Module | None] = []
        self.of_layers: Counter[nn.Module] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is nn.functional.scaled_dot_product_attention:
            query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            self.macs += query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        elif func is torch.einsum and len(args) == 3 and isinstance(args[0], str):
            self.macs += output.numel() * _contracted(*args)
        elif func in _PRODUCTS:
            self.macs += output.numel() * args[_PRODUCTS[func]].shape[-1]
        elif func in _MAPS and self.layers and (layer := self.layers[-1]) is not None:
            given, weight = (*args, *(kwargs[name] for name in ("input", "weight")[len(args) :]))[:2]
            each = given if func in _TRANSPOSED else output  # each of its numbers takes part in as many products
            self.of_layers[layer] += each.numel() * weight[0].numel()
        return output


def _contracted(equation: str, one: Tensor, other: Tensor) -> int:
    """Return how many products each number of an einsum of two tensors is the sum of."""
    given, _, kept = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for labels, tensor in zip(given.split(","), (one, other), strict=True):
        front, _, back = labels.partition("...")
        sizes |= dict(zip(front, tensor.shape, strict=False))
        sizes |= dict(zip(reversed(back), reversed(tensor.shape), strict=False))
    return prod(size for label, size in sizes.items() if label not in kept) if kept else 1


_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
_MAPS = (torch.conv1d, torch.conv2d, torch.conv3d, *_TRANSPOSED, nn.functional.linear)
_PRODUCTS: dict[Any, int] = {  # the position of the first factor among the arguments
    **dict.fromkeys((torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm), 0),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm), 1),
}


def _layer_cost(module: Any, inputs: tuple[Tensor, ...], output: Tensor, attention: int) -> StageCost:
    """Count one layer for one sample with all its frames, without the layer's children but for attention products."""
    if isinstance(module, Attention):
        return StageCost("", attention=attention)
    size = output.numel()
    if isinstance(module, _ConvNd):
        each = output if not module.transposed else inputs[0]
        channels = module.out_channels if module.transposed else module.in_channels
        products = each.numel() * prod(module.kernel_size) * channels // module.groups
        return StageCost("", products, biases=0 if module.bias is None else size)
    if isinstance(module, nn.Linear):  # the paper's counter counts its bias once, not once a token
        return StageCost("", size * module.in_features, biases=0 if module.bias is None else module.out_features)
    elementwise = size * (1 if module.weight is None else 2)
    return StageCost("", **{"group_norm" if isinstance(module, nn.GroupNorm) else "biases": elementwise})

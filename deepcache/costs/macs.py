"""The cost of full and shallow steps in multiply-accumulates (MACs), without weights or memory (meta tensors).

The paper counts for batch 1 and does not double for guidance. It counts convolutions and linear layers with their
biases, and norms with two MACs an element where they have weights; attention products (Q K^T and A V) do not count.
Its counter did not know the group norms of the original LDM code, so LDM-4-G's published numbers are without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from deepcache.plan import CachePlan
from deepcache.unets.calls import one_sample
from deepcache.unets.family import require_branch
from deepcache.unets.registry import family_of
from deepcache.unets.structure import on_meta


@dataclass(frozen=True)
class Convention:
    """What counts beside convolutions, linear layers and layer norms: group norms, and attention products."""

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
    """The MACs of one stage on one sample, by kind.

    `products` + `attention` is what torch's `FlopCounterMode` counts.

    Attributes:
        name: the name of the stage.
        products: the products of convolutions and linear layers.
        biases: the biases of these, and the layer norms.
        group_norm: the group norms.
        attention: the attention products.
    """

    name: str
    products: int = 0
    biases: int = 0
    group_norm: int = 0
    attention: int = 0

    def total(self, convention: Convention = PAPER) -> int:
        """Return the MACs that the convention counts."""
        norms = self.group_norm if convention.group_norm else 0
        return self.products + self.biases + norms + (self.attention if convention.attention else 0)


@dataclass(frozen=True)
class Cost:
    """The MACs of one U-Net at one input size, by stage.

    Attributes:
        outside: what runs on every step at every branch: embeddings and the last convolution.
        down, mid, up: the stages; `down[i]` and `up[i]` are those of skip i.
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
        """All stages in the order of execution, `outside` first."""
        return (self.outside, *self.down, self.mid, *self.up[::-1])

    def full(self, convention: Convention = PAPER) -> int:
        """Return the MACs of a full step for one sample."""
        return sum(stage.total(convention) for stage in self.stages)

    def shallow(self, branch: int, convention: Convention = PAPER) -> int:
        """Return the MACs of a shallow step for one sample.

        Raises:
            DeepCacheError: the U-Net has no such branch.
        """
        require_branch(branch, self.num_branches)
        live = (self.outside, *self.down[: branch + 1], *self.up[: branch + 1])
        return sum(stage.total(convention) for stage in live)

    def mean(self, plan: CachePlan, convention: Convention = PAPER) -> Fraction:
        """Return the MACs of a step for one sample, as the exact mean over the steps of a plan."""
        total = total_macs(plan, self.full(convention), self.shallow(plan.branch, convention))
        return Fraction(total, plan.num_steps)

    def ratio(self, plan: CachePlan) -> float:
        """Return uncached over cached MACs, everything counted: the speedup, if time went as MACs."""
        return float(self.full(EVERYTHING) / self.mean(plan, EVERYTHING))


def total_macs(plan: CachePlan, full: int, shallow: int) -> int:
    """Return the MACs of all steps of a plan for one sample.

    Args:
        plan: the plan; its branch is that of `shallow`.
        full: the MACs of a full step.
        shallow: the MACs of a shallow step.
    """
    return plan.num_full * full + (plan.num_steps - plan.num_full) * shallow


def cost(unet: Any, *args: Any, **kwargs: Any) -> Cost:
    """Count the MACs of a U-Net on the inputs of one call.

    Args:
        unet: a U-Net on any device; nothing of it is computed or changed. LoRA and IP-Adapter layers count.
        *args, **kwargs: the arguments of the U-Net's `forward`; tensors give their shapes alone. Their first dimension
            is the batch.

    Returns:
        The cost of one sample.
    """
    return counted(on_meta(unet), *one_sample(args, kwargs))


def counted(twin: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cost:
    """Count the MACs of a U-Net on the meta device, for a call of one sample on the meta device."""
    counts: dict[nn.Module, StageCost] = {}
    with torch.no_grad(), counting(twin, counts):
        twin(*args, **kwargs)
    stages = family_of(twin).nest(twin)
    down = tuple(_sum(stage.name, stage.modules, counts) for stage in stages.down)
    mid = _sum(stages.mid.name, stages.mid.modules, counts)
    up = tuple(_sum(stage.name, stage.modules, counts) for stage in stages.up)
    inside = {m for stage in (*stages.down, stages.mid, *stages.up) for outer in stage.modules for m in outer.modules()}
    outside = _sum("embeddings and head", tuple(module for module in counts if module not in inside), counts)
    return Cost(outside, down, mid, up)


@contextmanager
def counting(network: nn.Module, counts: dict[nn.Module, StageCost]) -> Iterator[None]:
    """Within the block, write the MACs of each layer of a network that runs into `counts`."""

    def count(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        counts[module] = _module_cost(module, args, kwargs, output)

    kinds = (nn.Conv2d, nn.Conv3d, nn.Linear, nn.GroupNorm, nn.LayerNorm, Attention)
    handles = [m.register_forward_hook(count, with_kwargs=True) for m in network.modules() if isinstance(m, kinds)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _module_cost(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> StageCost:
    """Count one layer for one sample with all its frames, without the layer's children."""
    size = output.numel()
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        products = size * prod(module.kernel_size) * module.in_channels // module.groups
        return StageCost("", products, biases=0 if module.bias is None else size)
    if isinstance(module, nn.Linear):  # the paper's counter counts its bias once, not once a token
        return StageCost("", size * module.in_features, biases=0 if module.bias is None else module.out_features)
    if isinstance(module, Attention):
        return StageCost("", attention=_attention_products(module, args, kwargs))
    elementwise = size * (1 if module.weight is None else 2)
    return StageCost("", **{"group_norm" if isinstance(module, nn.GroupNorm) else "biases": elementwise})


def _attention_products(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Count Q K^T and A V of one attention layer."""
    hidden = args[0] if args else kwargs["hidden_states"]
    context = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
    context, images = context if isinstance(context, tuple) else (context, ())  # IP-Adapter's images beside the text
    queries = prod(hidden.shape[2:]) if hidden.ndim == 4 else hidden.shape[1]
    # whether the layer has keys of its own beside those of the context
    has_own = module.added_kv_proj_dim is not None and not module.only_cross_attention
    keys = queries if context is None else context.shape[1] + queries * has_own
    keys += sum(prod(image.shape[1:-1]) for image in images)
    return int(2 * hidden.shape[0] * queries * keys * module.inner_dim)


def _sum(name: str, modules: tuple[nn.Module, ...], counts: Mapping[nn.Module, StageCost]) -> StageCost:
    """Add up the layers within some modules; each layer counts once."""
    inner = {module for outer in modules for module in outer.modules()}
    layers = [counts[module] for module in inner if module in counts]
    kinds = ("products", "biases", "group_norm", "attention")
    return StageCost(name, *(sum(getattr(layer, kind) for layer in layers) for kind in kinds))

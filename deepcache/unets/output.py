"""Branch -1: a network that is cut behind its last layer, so that the kept feature is its output.

It needs no knowledge of the network: U-Nets of any class, and transformers, are cut here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deepcache.errors import DeepCacheError, UnsupportedUNetError
from deepcache.unets.calls import Call
from deepcache.unets.family import Feature

_TENSOR = object()


@dataclass(frozen=True, eq=False)
class Form:
    """How an output is put together from its tensors: it may be a tensor, a tuple, or one of diffusers' outputs."""

    spec: pytree.TreeSpec
    others: tuple[Any, ...]  # the leaves that are no tensors of floats, and `_TENSOR` in the place of each tensor

    @classmethod
    def of(cls, output: Any) -> tuple[Self, Feature]:
        """Return the form of an output, and its tensors; refuse an output in which none can be found."""
        leaves, spec = pytree.tree_flatten(output)
        others = tuple(_TENSOR if is_predicted(leaf) else _copied(leaf) for leaf in leaves)
        tensors = tuple(filter(is_predicted, leaves))
        if not tensors:
            raise UnsupportedUNetError(
                "expected a network that returns a tensor of floats, or a tuple, a list, a dict or one of diffusers' "
                f"outputs of tensors, got {type(output).__name__}"
            )
        return cls(spec, others), tensors

    def output(self, tensors: Feature) -> Any:
        """Return an output of this form. Its tensors are copies, so that nobody writes into kept ones."""
        given = iter(tensors)
        leaves = [next(given).clone() if other is _TENSOR else _copied(other) for other in self.others]
        return pytree.tree_unflatten(leaves, self.spec)


def is_predicted(leaf: Any) -> bool:
    """Return whether a leaf of an output is a tensor whose values can be interpolated."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


class TakesAnything:
    """This base answers for a `CutUNet` whose network takes any inputs and returns tensors in any form."""

    def require_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Every input can be taken: a full step is the network's own, or is proven to be."""

    def tensors_of(self, output: Any) -> tuple[Tensor, ...]:
        return Form.of(output)[1]

    def with_tensors(self, output: Any, tensors: tuple[Tensor, ...]) -> Any:
        return Form.of(output)[0].output(tensors)


class WholeNetwork(TakesAnything):
    """The `CutUNet` of branch -1: a full step is the network's own forward pass, and there is no shallow step."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def full(self, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
        return self.run_full(self._network, *args, **kwargs)

    def shallow(self, feature: Feature, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002 (there is no such step)
        raise DeepCacheError("at branch -1 no stage runs between full steps; predict the output instead")

    @staticmethod
    def run_full(network: Any, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
        return type(network).forward(network, *args, **kwargs), ()

    @property
    def run_shallow(self) -> Any:
        return self.shallow

    def full_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return (self._network, *args), kwargs

    def shallow_call(self, feature: Feature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return (feature, *args), kwargs

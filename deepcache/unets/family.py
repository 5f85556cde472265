"""The seam for U-Nets: what the rest of the library asks of a U-Net that can be cut.

A family is a set of U-Net classes that are cut in the same way. A new family is one new file with a `Family` and a
`CutUNet`, and one line in `deepcache/unets/registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from deepcache.errors import DeepCacheError
from deepcache.unets.calls import Call

Feature = tuple[Tensor, ...]  # the tensors that enter the up stage of the branch; mostly one, (B, C, H', W')


class UNet(Protocol):
    """A diffusion U-Net, which is a `torch.nn.Module`; it may be wrapped by `torch.compile`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class Stage:
    """A piece of a U-Net that pushes or pops exactly one skip."""

    name: str  # tells where the stage is in the U-Net
    modules: tuple[nn.Module, ...]  # those that run in the stage


AnyStage = TypeVar("AnyStage", bound=Stage, covariant=True)


@dataclass(frozen=True)
class Nest(Generic[AnyStage]):
    """All stages of one U-Net: `down[i]` pushes skip i, `up[i]` pops it, and `mid` runs between them."""

    down: tuple[AnyStage, ...]
    mid: Stage
    up: tuple[AnyStage, ...]

    @property
    def num_branches(self) -> int:
        """The number of skips; a branch is 0 .. `num_branches` - 1."""
        return len(self.down)


class Steps(Protocol):
    """The full and the shallow step of one U-Net at one branch."""

    def full(self, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
        """Run the whole U-Net on the arguments of its `forward`, and return its output and the branch's feature."""

    def shallow(self, feature: Feature, *args: Any, **kwargs: Any) -> Any:
        """Run the outermost stages around a feature from another step, and return what `forward` returns."""

    def require_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise an `UnsupportedUNetError` for an input that the steps cannot take; nothing has run by then."""


class CutUNet(Steps, Protocol):
    """A U-Net that is cut at one branch.

    `full` and `shallow` run at once. A compiler gets the same steps in two pieces: functions without state, and their
    arguments, which are made anew for every step, so that a change of the U-Net is seen.
    """

    @property
    def run_full(self) -> Callable[..., tuple[Any, Feature]]:
        """The function that runs a full step; `full_call` returns its arguments."""

    @property
    def run_shallow(self) -> Callable[..., Any]:
        """The function that runs a shallow step; `shallow_call` returns its arguments."""

    def full_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the arguments of `run_full` for one call of `forward`."""

    def shallow_call(self, feature: Feature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the arguments of `run_shallow` for one call of `forward`."""

    def tensors_of(self, output: Any) -> tuple[Tensor, ...]:
        """Return the tensors of a step's output; the first one is the prediction that the solver takes."""

    def with_tensors(self, output: Any, tensors: tuple[Tensor, ...]) -> Any:
        """Return an output of the same form with other tensors."""


class Family(Protocol):
    """A set of U-Net classes that are cut in the same way."""

    @property
    def classes(self) -> Mapping[str, type[nn.Module]]:
        """The classes by name, as a configuration file names them."""

    def covers(self, unet: Any) -> bool:
        """Say whether this family cuts the U-Net; `nest` may still refuse one of its blocks."""

    def nest(self, unet: Any, call: Call | None = None) -> Nest[Stage]:
        """Return the stages of a U-Net, or raise an `UnsupportedUNetError` for a block that is not known.

        A family that watches a call to learn the stages needs `call`; it is on the meta device if the U-Net is.
        """

    def cut(self, unet: Any, branch: int) -> CutUNet:
        """Cut a U-Net at a branch: the skips 0..branch stay live on a shallow step.

        Raises:
            UnsupportedUNetError: the family does not know a block, or a block at the cut has hooks.
            DeepCacheError: the U-Net has no such branch.
        """

    def example(
        self,
        unet: Any,
        *,
        context_tokens: int | None = None,
        size: tuple[int, int] | None = None,
        num_frames: int | None = None,
    ) -> Call:
        """Return a call for one sample, on the meta device, as the configuration of the U-Net tells it.

        Args:
            context_tokens: the length of the conditioning sequence, at least 1; None for that of the class.
            size: height and width of the sample; None for those of the configuration.
            num_frames: the length of a video, at least 1; None for that of the configuration, or else 16.

        Raises:
            DeepCacheError: there is neither a size nor a `sample_size`, or a number is below 1.
        """

    def num_frames(self, unet: Any, shape: tuple[int, ...]) -> int:
        """Return how many frames a sample of this shape has; an image has 1."""


def require_branch(branch: object, num_branches: int) -> int:
    """Return the branch, or raise a `DeepCacheError` if it is not one of 0 .. `num_branches` - 1."""
    if isinstance(branch, bool) or not isinstance(branch, int) or not 0 <= branch < num_branches:
        raise DeepCacheError(
            f"expected branch 0..{num_branches - 1}, one for each skip connection of this U-Net, got {branch!r}"
        )
    return branch

"""The two kinds of objects that users hand to the library, described by what the library uses of them."""

from __future__ import annotations

from typing import Any, Protocol


class UNet(Protocol):
    """A diffusion U-Net, which is a `torch.nn.Module`; it may be wrapped by `torch.compile`.

    `deepcache.unets` knows which classes can be cached.
    """

    @property
    def config(self) -> Any:
        """The configuration that the U-Net was built from."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output for a sample and a timestep, the first two arguments, and the inputs of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's hooks and `forward`."""


class Pipeline(Protocol):
    """A diffusers pipeline, or any object with a U-Net and a scheduler."""

    @property
    def unet(self) -> UNet: ...

    @property
    def scheduler(self) -> Any:
        """The solver; its `timesteps` (T) are those of the generation under way."""

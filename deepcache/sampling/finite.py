"""Which samples of a batch are numbers: images alone do not tell, since pipelines clamp infinities."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

Flags = list[Tensor]  # (rows,) bool, one a call of a network


@contextmanager
def watched(pipe: Any) -> Iterator[Flags]:
    """Inside the block, every call of the pipeline's U-Net and decoder adds which rows of its output are finite."""
    flags: Flags = []

    def note(_: Any, __: Any, output: Any) -> None:
        values = output if isinstance(output, Tensor) else output[0]
        flags.append(values.isfinite().flatten(1).all(1))

    with ExitStack() as stack:
        for network in (pipe.unet, *_decoders(pipe)):
            stack.callback(network.register_forward_hook(note).remove)
        yield flags


def finite(flags: Flags, images: Tensor) -> Tensor:
    """(B,) bool: whether a sample's image and all rows of it were finite.

    Guidance gives each sample two rows, B apart. Rows that cannot be told apart count for all samples.
    """
    found, count = images.isfinite().flatten(1).all(1), len(images)
    for rows in flags:
        parts = rows.view(-1, count).all(0) if len(rows) % count == 0 else rows.all().expand(count)
        found = found & parts.to(found.device)
    return found.cpu()


def _decoders(pipe: Any) -> list[Any]:
    vaes = (getattr(pipe, name, None) for name in ("vae", "vqvae", "movq"))
    decoders = (getattr(vae, "decoder", None) for vae in vaes)
    return [decoder for decoder in decoders if isinstance(decoder, nn.Module)]

"""Small U-Nets of classes of their own, which travel through their blocks as well-known code bases do.

None is copied; each has the shape of a family: CompVis' and ADM's three lists and a stack, EDM's dictionaries of named
blocks, lucidrains' tuples of modules, a counter over one flat list (score-based models), and ControlNet's residuals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WIDTHS = (4, 8, 8)
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Block(nn.Module):
    """A residual block with a timestep."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm, self.conv, self.time = (
            nn.GroupNorm(2, channels),
            nn.Conv2d(channels, out, 3, 1, 1),
            nn.Linear(1, out),
        )
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.skip(x) + self.conv(nn.functional.silu(self.norm(x))) + self.time(emb)[..., None, None]


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2, 1)

    def forward(self, x: Tensor, _emb: Tensor) -> Tensor:
        return self.conv(x)


class Up(nn.Module):
    def forward(self, x: Tensor, _emb: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=2.0)


class Several(nn.Sequential):
    """Hands the timestep on to each of its modules."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for module in self:
            x = module(x, emb)
        return x


def embedding(t: Tensor | float, batch: int) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float32).reshape(-1, 1).expand(batch, 1) / 1000


class Lists(nn.Module):
    """Three lists and a stack of skips, with residuals that somebody may add to the skips."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c = WIDTHS
        self.inputs = nn.ModuleList([nn.Conv2d(3, a, 3, 1, 1), Block(a, a), Down(a), Block(a, b), Down(b), Block(b, c)])
        self.middle = Several(Block(c, c), Block(c, c))
        self.outputs = nn.ModuleList(
            [
                Block(c + c, c),
                Several(Block(c + b, b), Up()),
                Block(b + b, b),
                Several(Block(b + a, a), Up()),
                Block(a + a, a),
                Block(a + a, a),
            ]
        )
        self.out = nn.Conv2d(a, 3, 3, 1, 1)

    def forward(self, x: Tensor, t: Tensor | float, control: list[Tensor] | None = None) -> Tensor:
        emb = embedding(t, len(x))
        skips: list[Tensor] = []
        for module in self.inputs:
            x = module(x) if isinstance(module, nn.Conv2d) else module(x, emb)
            skips.append(x)
        if control is not None:
            skips = [skip + more for skip, more in zip(skips, control, strict=True)]
        x = self.middle(x, emb)
        for module in self.outputs:
            x = module(torch.cat([x, skips.pop()], dim=1), emb)
        return self.out(x)


class Named(nn.Module):
    """Dictionaries of blocks whose names say what they do; the output is a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        a, b, _ = WIDTHS
        self.enc = nn.ModuleDict(
            {"8_conv": nn.Conv2d(3, a, 3, 1, 1), "8_block": Block(a, a), "4_down": Down(a), "4_block": Block(a, b)}
        )
        self.dec = nn.ModuleDict(
            {"4_in": Block(b, b), "4_block": Block(b + b, b), "8_up": Up(), "8_block": Block(b + a, a)}
        )
        self.out = nn.Conv2d(a, 3, 3, 1, 1)

    def forward(self, x: Tensor, noise_labels: Tensor) -> dict[str, Tensor]:
        emb = embedding(noise_labels, len(x))
        skips: dict[str, Tensor] = {}
        for name, module in self.enc.items():
            x = module(x) if "conv" in name else module(x, emb)
            if "block" in name:
                skips[name] = x
        for name, module in self.dec.items():
            x = module(torch.cat([x, skips[name]], dim=1) if "block" in name else x, emb)
        return {"sample": self.out(x)}


class Tuples(nn.Module):
    """Tuples of modules for each resolution, and a residual of the input at the very end."""

    def __init__(self) -> None:
        super().__init__()
        a, b, _ = WIDTHS
        self.first = nn.Conv2d(3, a, 3, 1, 1)
        self.downs = nn.ModuleList([nn.ModuleList([Block(a, a), Down(a)]), nn.ModuleList([Block(a, b), Down(b)])])
        self.mid = Block(b, b)
        self.ups = nn.ModuleList([nn.ModuleList([Up(), Block(b + b, a)]), nn.ModuleList([Up(), Block(a + a, a)])])
        self.last = Block(a + a, 3)

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, ...]:
        emb = embedding(time, len(x))
        x = begin = self.first(x)
        skips = []
        block: Any
        down: Any
        up: Any
        for block, down in self.downs:
            x = block(x, emb)
            skips.append(x)
            x = down(x, emb)
        x = x + self.mid(x, emb)
        for up, block in self.ups:
            x = block(torch.cat((up(x, emb), skips.pop()), dim=1), emb)
        return (self.last(torch.cat((x, begin), dim=1), emb),)


class Counted(nn.Module):
    """One flat list, through which a counter goes."""

    def __init__(self) -> None:
        super().__init__()
        a, b, _ = WIDTHS
        self.all_modules = nn.ModuleList(
            [
                nn.Conv2d(3, a, 3, 1, 1),
                Block(a, a),
                Down(a),
                Block(a, b),
                Block(b, b),
                Block(b + b, a),
                Block(a + a, a),
                Block(a + a, 3),
            ]
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb, at = embedding(t, len(x)), iter(self.all_modules)
        x = next(at)(x)
        skips = [x]
        for _ in range(3):
            x = next(at)(x, emb)
            skips.append(x)
        x = next(at)(x, emb)
        x = next(at)(torch.cat([x, skips.pop()], dim=1), emb)
        x = next(at)(torch.cat([x, skips.pop()], dim=1), emb)
        x = nn.functional.interpolate(x, scale_factor=2.0)
        return next(at)(torch.cat([x, skips.pop()], dim=1), emb) + skips.pop()[:, :3]


class Volume(nn.Module):
    """A U-Net of volumes, which normalises its skips in place."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv3d(1, 4, 3, 1, 1), nn.Conv3d(4, 4, 3, 2, 1)
        self.deeper, self.up = nn.Conv3d(4, 4, 3, 1, 1), nn.ConvTranspose3d(4, 4, 2, 2)
        self.out = nn.Conv3d(8, 1, 3, 1, 1)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        skip = self.down(x).add_(embedding(timesteps, len(x))[..., None, None, None])
        x = self.up(self.deeper(self.deep(skip).relu_()).relu_())
        return self.out(torch.cat([x, skip.tanh_()], dim=1))


class Sequence(nn.Module):
    """A U-Net of sequences, conditioned by a vector, as policies are."""

    def __init__(self) -> None:
        super().__init__()
        self.cond = nn.Linear(2, 4)
        self.down, self.deep = nn.Conv1d(2, 4, 3, 1, 1), nn.Conv1d(4, 4, 3, 2, 1)
        self.mid, self.up = nn.Conv1d(4, 8, 3, 1, 1), nn.ConvTranspose1d(8, 4, 4, 2, 1)
        self.out = nn.Conv1d(8, 2, 3, 1, 1)

    def forward(self, x: Tensor, timestep: Tensor, global_cond: Tensor | None = None) -> Tensor:
        emb = embedding(timestep, len(x))[..., None]
        if global_cond is not None:
            emb = emb + self.cond(global_cond)[..., None]
        skip = self.down(x.mT) + emb
        x = self.up(self.mid(self.deep(skip).relu()))
        return self.out(torch.cat([x, skip], dim=1)).mT


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "three lists": (Lists, (3, 8, 8)),
    "dictionaries": (Named, (3, 8, 8)),
    "tuples": (Tuples, (3, 8, 8)),
    "a counter": (Counted, (3, 8, 8)),
    "volumes": (Volume, (1, 4, 4, 4)),
    "sequences": (Sequence, (8, 2)),
}
NAMES = tuple(KINDS)


def network(name: str) -> nn.Module:
    """The same random weights for the same name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return KINDS[name][0]().eval().requires_grad_(requires_grad=False)


def sample(name: str, *, seed: int = 0, batch: int = 2) -> Tensor:
    return torch.randn(batch, *KINDS[name][1], generator=torch.Generator().manual_seed(seed))


def tensor_of(output: Any) -> Tensor:
    """The only tensor in an output: itself, or in a tuple or a dictionary."""
    if isinstance(output, dict):
        return output["sample"]
    return output[0] if isinstance(output, tuple) else output

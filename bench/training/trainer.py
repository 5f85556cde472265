"""All trainings share a loop that can be stopped and resumed, its log, and the loss of a diffusion model."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm import tqdm

from deepcache.errors import DeepCacheError
from deepcache.files import whole_file

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Recipe:
    """The length and the pace of a training.

    Attributes:
        num_steps: steps of the optimiser.
        lr: peak of the learning rate, which then falls to 0 along a cosine.
        warmup: steps after which the learning rate has reached its peak.
        ema: decay of the moving average of the weights; a training returns the average.
        weight_decay: the optimiser's.
        save_every_s: seconds between two saved states.
    """

    num_steps: int
    lr: float
    warmup: int = 200
    ema: float = 0.999
    weight_decay: float = 0.01
    save_every_s: float = 60.0

    def lr_at(self, step: int) -> float:
        rise = min(1.0, (step + 1) / self.warmup)
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * step / self.num_steps))

    def ema_at(self, step: int) -> float:
        return min(self.ema, (1 + step) / (10 + step))


@contextmanager
def seeded() -> Iterator[None]:
    """Within the block, torch's global generator, from which networks draw their first weights, has seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def train(module: Network, loss: Callable[[Network, int], Tensor], recipe: Recipe, folder: Path) -> Network:
    """Minimise `loss(module, step)` and return the moving average of the module's weights.

    A training that was stopped goes on as if it had not been stopped.

    Args:
        module: the network to train.
        loss: maps the network and a step to a loss; must draw its batch from the step alone.
        recipe: how long and how fast to train.
        folder: holds the state (`state.pt`) and the log (`log.jsonl`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    average = copy.deepcopy(module).eval().requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(module.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    first, seconds_before = _resume(folder, module, average, optimizer)
    started = saved = time.monotonic()
    module.train()
    with tqdm(total=recipe.num_steps, initial=first, desc=folder.name, unit="step", mininterval=2) as bar:
        for step in range(first, recipe.num_steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(step)
            optimizer.zero_grad(set_to_none=True)
            value = loss(module, step)
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            _follow(average, module, recipe.ema_at(step))
            bar.update()
            if step % 100 == 99 or step + 1 == recipe.num_steps:
                now = time.monotonic()
                seconds = seconds_before + now - started
                _log(
                    folder,
                    step=step + 1,
                    loss=value.item(),
                    lr=recipe.lr_at(step),
                    seconds=round(seconds, 1),
                    threads=torch.get_num_threads(),
                )
                bar.set_postfix(loss=f"{value.item():.4f}", refresh=False)
                if now - saved > recipe.save_every_s or step + 1 == recipe.num_steps:
                    _save(folder, module, average, optimizer, step + 1, seconds)
                    saved = now
    return average


def _follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
        for mine, theirs in zip(average.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)


def _resume(folder: Path, module: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    path = folder / "state.pt"
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]


def _save(
    folder: Path, module: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    state = {
        "module": module.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    _save_whole(state, folder / "state.pt")


def diffusion_loss(
    network: Callable[[Tensor, Tensor], Tensor], noise_schedule: Any, clean: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the mean squared error of a predicted noise or velocity, at a random timestep of each sample.

    Args:
        network: maps noisy samples (B, ...) and timesteps (B,) to the prediction (B, ...); runs in bfloat16 where
            torch's autocast says so.
        noise_schedule: a diffusers scheduler; its `prediction_type` says what the network predicts.
        clean: (B, ...) samples without noise.
        generator: draws the noise, then the timesteps.

    Raises:
        DeepCacheError: the `prediction_type` is neither "epsilon" nor "v_prediction".

    References: Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
    """
    noise = torch.randn(clean.shape, generator=generator)
    t = torch.randint(noise_schedule.config.num_train_timesteps, (len(clean),), generator=generator)
    target = _target(noise_schedule, clean, noise, t)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = network(noise_schedule.add_noise(clean, noise, t), t)
    return mse_loss(predicted.float(), target)


def _target(noise_schedule: Any, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    kind = noise_schedule.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        velocity: Tensor = noise_schedule.get_velocity(clean, noise, t)
        return velocity
    raise DeepCacheError(f"expected prediction_type epsilon or v_prediction, got {kind!r}; give another scheduler")


def kept(path: Path, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return the tensors of `make`, which are made once and kept in a file between runs."""
    if not path.exists():
        _save_whole(make(), path)
    found: tuple[Tensor, ...] = torch.load(path, weights_only=True)
    return found


def _save_whole(value: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        torch.save(value, file)


def _log(folder: Path, **line: float) -> None:
    with open(folder / "log.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")

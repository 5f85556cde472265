"""A store is filled with the pipeline's rounded samples; large batches are halved, and NaN is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, EulerDiscreteScheduler
from torch import Tensor

from deepcache.errors import DeepCacheError
from deepcache.sampling.conditions import conditions_of
from deepcache.sampling.filling import Batches, finite, watched
from deepcache.sampling.samples import sample
from deepcache.sampling.workload import Sampling, Workload
from tests.problems import pipeline, unet

QUICK = {"num_inference_steps": 3, "guidance_scale": 1.5}


def batches(
    pipe: Any, size: int = 4, *, is_halved: bool = False, advance: Callable[[int], None] = lambda _: None
) -> Batches:
    workload = Workload(pipe, conditions_of(pipe), size, {"guidance_scale": 1.5}, is_halved=is_halved)
    return Batches(workload, Sampling(None, 3), size, advance)


class Pipe:
    """Samples that tell their seed; the memory does for `limit` of them."""

    def __init__(self, limit: int, error: type[Exception] = torch.OutOfMemoryError, text: str = "CUDA") -> None:
        self.limit, self.error, self.text, self.sizes = limit, error, text, []
        self.unet, self.scheduler = torch.nn.Identity(), SimpleNamespace(config={})

    def set_progress_bar_config(self, **_: Any) -> None:
        pass

    def __call__(self, batch_size: int, generator: list[torch.Generator], **_: Any) -> SimpleNamespace:
        if batch_size > self.limit:
            raise self.error(self.text)
        self.sizes.append(batch_size)
        seeds = torch.tensor([float(g.initial_seed()) for g in generator])
        return SimpleNamespace(images=(seeds / 255).view(-1, 1, 1, 1).expand(-1, 3, 2, 2))


def test_samples_are_the_pipelines_rounded_to_8_bits():
    pipe = pipeline()
    found = batches(pipe)(range(3, 13))
    images = torch.cat([sample(pipe, some, batch_size=4, progress=False, **QUICK) for some in _fours(range(3, 13))])
    assert found.dtype == np.uint8
    assert np.array_equal(found, (images * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8))
    assert len(np.unique(found)) > 50


def _fours(seeds: range) -> list[range]:
    return [seeds[i : i + 4] for i in range(0, len(seeds), 4)]


def test_samples_depend_on_their_shard_alone():
    """Shards that were sampled before change nothing."""
    pipe = pipeline()
    one = batches(pipe)
    one(range(7))
    assert np.array_equal(one(range(8, 14)), batches(pipe)(range(8, 14)))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory"),
        (RuntimeError, "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        (RuntimeError, "DefaultCPUAllocator: not enough memory: you tried to allocate 400 bytes."),
        (MemoryError, ""),
    ],
)
def test_a_batch_that_is_too_large_is_halved_and_says_so(capsys, error, text):
    advanced, pipe = [], Pipe(3, error, text)
    found = batches(pipe, 13, is_halved=True, advance=advanced.append)
    assert found(range(20))[:, 0, 0, 0].tolist() == list(range(20))
    assert pipe.sizes == advanced == [3] * 6 + [2]
    assert capsys.readouterr().err.splitlines() == [
        "not enough memory for 13 samples together; going on with batches of 6",
        "not enough memory for 6 samples together; going on with batches of 3",
    ]
    assert found(range(20, 24))[:, 0, 0, 0].tolist() == list(range(20, 24))
    assert not capsys.readouterr().err


def test_torchs_own_refusal_to_allocate_is_known(capsys):
    """The allocator itself is the oracle of its words."""

    class Greedy(Pipe):
        def __call__(self, batch_size: int, **arguments: Any) -> SimpleNamespace:
            if batch_size > 2:
                torch.empty(10**16)
            return super().__call__(batch_size=batch_size, **arguments)

    found = batches(Greedy(10), 4, is_halved=True)(range(4))
    assert len(found) == 4
    assert capsys.readouterr().err == "not enough memory for 4 samples together; going on with batches of 2\n"


@pytest.mark.parametrize(
    ("limit", "is_halved", "message"),
    [(3, False, "take --batch-size auto, or less than 4"), (0, True, "for 1 samples together; take fp16")],
)
def test_memory_that_does_not_do_is_one_line(limit, is_halved, message):
    with pytest.raises(DeepCacheError, match=message) as caught:
        batches(Pipe(limit), 4, is_halved=is_halved)(range(4))
    assert "\n" not in str(caught.value)


def test_any_other_error_is_not_taken_for_it():
    with pytest.raises(RuntimeError, match="size mismatch"):
        batches(Pipe(0, RuntimeError, "size mismatch"), 4, is_halved=True)(range(4))


def spoiled(pipe: Any, rows: Tensor, value: float, *, network: Any = None, call: int = 0) -> list[str]:
    """The line that refuses samples of seeds 3 to 6 where some rows of one output of a network are not finite."""
    calls = iter(range(100))

    def spoil(_: Any, __: Any, output: Any) -> None:
        if next(calls) == call:
            (output if isinstance(output, Tensor) else output.sample)[rows] = value

    handle = (network or pipe.unet.conv_out).register_forward_hook(spoil)
    try:
        batches(pipe)(range(3, 7))
    except DeepCacheError as error:
        return str(error).splitlines()
    finally:
        handle.remove()
    return []


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("call", [0, 2])
@pytest.mark.parametrize("row", [1, 5])
def test_samples_that_are_not_numbers_are_refused_by_their_seeds(value, call, row):
    """One row of the U-Net's output is spoiled, at the first or last step; of 8 rows, rows 1 and 5 are seed 4's."""
    (line,) = spoiled(pipeline(), torch.tensor([row]), value, call=call)
    assert line.startswith("expected finite samples, got NaN or infinite values of seeds 4;")


def test_a_decoder_that_overflows_is_refused():
    pipe = pipeline()
    (line,) = spoiled(pipe, torch.tensor([0, 3]), torch.inf, network=pipe.vqvae.decoder)
    assert "values of seeds 3, 6;" in line


def test_images_alone_do_not_tell():
    """Clamping hides an infinity: a check of the images alone would be a broken variant."""
    latent, pixels = pipeline(), DDPMPipeline(unet("ddpm", sample_size=8), EulerDiscreteScheduler())
    for pipe, last in ((latent, latent.vqvae.decoder), (pixels, pixels.unet.conv_out)):
        last.register_forward_hook(lambda _, __, output: output.fill_(-torch.inf))
        with watched(pipe) as flags:
            images = sample(pipe, [0, 1], batch_size=2, progress=False, num_inference_steps=1)
        assert finite([], images).tolist() == [True, True]
        assert finite(flags, images).tolist() == [False, False]
        assert not pipe.unet._forward_hooks


def test_rows_that_cannot_be_told_apart_count_for_all():
    images, rows = torch.zeros(4, 3, 2, 2), torch.ones(6, dtype=torch.bool)
    assert finite([rows], images).tolist() == [True] * 4
    rows[5] = False
    assert finite([rows], images).tolist() == [False] * 4

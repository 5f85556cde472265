"""CUDA graphs of steps. Oracle: the same steps without them, bit for bit.

Where there is no such device, a recorder stands in that keeps a graph's rules as far as a CPU can: a capture computes
nothing, and a replay reads and writes the same memory each time, without the arguments of later calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler
from optional import OPTIONAL, TRIED
from problems import NAMES, SCHEDULERS, inputs, latents, pipeline, unet
from torch import Tensor
from torch.utils._pytree import tree_leaves

from deepcache import DeepCacheError, cached
from deepcache import graphs as graphs_module

CUDA = torch.cuda.is_available()
NUM_STEPS = 7


class StandIn:
    """A recorder of "graphs" on the CPU."""

    recorded: list[StandIn] = []  # noqa: RUF012 (a test's own, emptied by its fixture)

    def __init__(self, device: torch.device) -> None:
        self.num_captures = self.num_replays = self.num_bytes = 0
        assert device.type == "cpu"
        StandIn.recorded.append(self)

    def turn(self) -> AbstractContextManager[None]:
        return nullcontext()

    def warm_up(self, run: Callable[[], Any]) -> None:
        run()

    def leave_pool(self) -> None:
        pass

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        output = run()
        own = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        for leaf in own:
            leaf.fill_(float("nan"))
        self.num_captures += 1

        def replay() -> None:
            self.num_replays += 1
            for leaf, value in zip(own, tree_leaves(run()), strict=True):
                leaf.copy_(value)

        return replay, output


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    StandIn.recorded.clear()
    if not CUDA:
        monkeypatch.setattr("deepcache.graphs.Recorder", StandIn)
        monkeypatch.setattr("deepcache.compiling.graphed_device", lambda unet: unet.device)
    with torch.no_grad():
        yield


def _captures() -> int:
    (recorder,) = StandIn.recorded
    assert recorder.num_replays >= recorder.num_captures
    return recorder.num_captures


def _on_device(value: Any) -> Any:
    return value.to("cuda") if CUDA else value


@pytest.mark.parametrize("name", NAMES)
def test_graphs_equal_eager_steps_for_every_family(name: str) -> None:
    model, (args, kwargs) = _on_device(unet(name)), _on_device_all(inputs(name))
    sample, _, *rest = args

    def outputs() -> list[Tensor]:
        return [model(sample + 0.1 * k, t, *rest, **kwargs).sample for k, t in enumerate((900, 800, 700, 600))]

    with cached(model, interval=3, order=1):
        expected = outputs()
    with cached(model, interval=3, order=1, cuda_graphs=True):
        found = outputs()
    _assert_same(found, expected)


@pytest.mark.parametrize(("which", "name"), [(which, names[0]) for which, names in TRIED.items()])
def test_graphs_take_every_optional_input(which: str, name: str) -> None:
    """A T2I-Adapter's residuals too, which diffusers takes out of the list that it is given."""
    model, *call = OPTIONAL[which](name)
    model, call = _on_device(model), _on_device_all(call)

    def outputs() -> list[Tensor]:
        calls = (deepcopy(call) for _ in range(4))
        return [model(args[0] + 0.1 * k, *args[1:], **kwargs).sample for k, (args, kwargs) in enumerate(calls)]

    with cached(model, interval=2, order=1):
        expected = outputs()
    with cached(model, interval=2, order=1, cuda_graphs=True):
        found = outputs()
    _assert_same(found, expected)


def _assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Bit for bit, but on a device, whose kernels a capture may choose otherwise."""
    tolerance = {"rtol": 1e-3, "atol": 1e-5} if CUDA else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(found, expected, **tolerance)


def _on_device_all(value: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, _on_device, value)


@pytest.mark.skipif(CUDA, reason="counts what the stand-in records")
class TestReplays:
    """What a wrong replay would get wrong."""

    @pytest.mark.parametrize("scheduler", ["plms", "dpm-solver++"])
    def test_what_a_multistep_solver_keeps_is_not_overwritten(self, scheduler: str) -> None:
        pipe = pipeline(SCHEDULERS[scheduler]())
        with cached(pipe, interval=2, order=2):
            expected = [latents(pipe, seed=seed, num_steps=NUM_STEPS) for seed in range(3)]
        with cached(pipe, interval=2, order=2, cuda_graphs=True):
            for seed, image in enumerate(expected):
                assert torch.equal(latents(pipe, seed=seed, num_steps=NUM_STEPS), image)
        assert _captures() == 2

    def test_another_prompt_is_another_image_of_the_same_graphs(self) -> None:
        pipe = pipeline(PNDMScheduler(skip_prk_steps=True))
        prompts = [(0, 1), (2, 2), (0, 1)]
        with cached(pipe, interval=3):
            expected = [latents(pipe, labels=labels) for labels in prompts]
        assert not torch.equal(*expected[:2])
        with cached(pipe, interval=3, cuda_graphs=True):
            for labels, image in zip(prompts, expected, strict=True):
                assert torch.equal(latents(pipe, labels=labels), image)
        assert _captures() == 2

    def test_another_size_has_graphs_of_its_own_and_the_first_ones_stay(self) -> None:
        model = unet("sd-1.5")
        sizes = [(8, 8), (16, 8), (8, 8), (16, 8)]

        def image(size: tuple[int, int]) -> list[Tensor]:
            (sample, _, context), _ = inputs("sd-1.5", size=size)
            return [model(sample, t, context).sample for t in (900, 500)]

        with cached(model, interval=2) as plain:
            expected = [(plain.reset(), image(size))[1] for size in sizes]
        with cached(model, interval=2, cuda_graphs=True) as cache:
            for size, outputs in zip(sizes, expected, strict=True):
                cache.reset()
                assert all(map(torch.equal, image(size), outputs))
        assert _captures() == 4

    def test_what_is_no_tensor_has_graphs_of_its_own(self) -> None:
        model, ((sample, _, context), _) = unet("sd-1.5"), inputs("sd-1.5")
        with cached(model, interval=1, cuda_graphs=True):
            output = model(sample, 900, context).sample
            assert torch.equal(model(sample, 900, context, return_dict=False)[0], output)
            masked = model(sample, 900, context, encoder_attention_mask=torch.tensor([[1, 1, 0, 0, 0]] * 2)).sample
        assert torch.equal(masked, model(sample, 900, context, encoder_attention_mask=_mask()).sample)
        assert not torch.equal(masked, output)
        assert _captures() == 3

    def test_two_threads_take_turns(self) -> None:
        pipes = [pipeline() for _ in range(8)]
        for pipe in pipes[1:]:
            pipe.unet = pipes[0].unet
        with cached(pipes[0], interval=2, order=1):
            expected = [latents(pipes[0], seed=seed, num_steps=NUM_STEPS) for seed in range(8)]

        def image(seed: int) -> Tensor:
            with torch.no_grad():
                return latents(pipes[seed], seed=seed, num_steps=NUM_STEPS)

        with cached(pipes[0].unet, interval=2, order=1, cuda_graphs=True), ThreadPoolExecutor(2) as threads:
            found = list(threads.map(image, range(8)))
        assert all(map(torch.equal, found, expected))
        assert _captures() == 2

    def test_the_least_recently_used_graph_goes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("deepcache.graphs.KEPT", 2)
        model, (sample, _, context) = unet("sd-1.5"), inputs("sd-1.5")[0]
        with cached(model, interval=1, cuda_graphs=True) as cache:
            for batch in (1, 2, 1, 1, 2):
                model(sample[:batch], 900, context[:batch])
            assert _captures() == 2
            held = cache.graph_bytes
            model(sample[:1, :, :4], 900, context[:1])
            model(sample[:1], 900, context[:1])
        assert _captures() == 4
        assert held >= sum(each.numel() * each.element_size() for each in (sample, context))
        assert cache.graph_bytes == 0

    def test_weights_that_moved_are_followed(self) -> None:
        model, (sample, _, context) = unet("sd-1.5"), inputs("sd-1.5")[0]
        with cached(model, interval=1, cuda_graphs=True):
            before = model(sample, 900, context).sample
            model.conv_in.weight = torch.nn.Parameter(2 * model.conv_in.weight)
            after = model(sample, 900, context).sample
            assert torch.equal(model(sample, 900, context).sample, after)
        assert not torch.equal(before, after)
        assert torch.equal(after, model(sample, 900, context).sample)
        assert _captures() == 2

    def test_weights_changed_in_place_are_seen(self) -> None:
        model, (sample, _, context) = unet("sd-1.5"), inputs("sd-1.5")[0]
        with cached(model, interval=1, cuda_graphs=True):
            before = model(sample, 900, context).sample
            model.load_state_dict(unet("sd-1.5", seed=1).state_dict())
            after = model(sample, 900, context).sample
        assert not torch.equal(before, after)
        assert torch.equal(after, model(sample, 900, context).sample)

    def test_compiled_steps_are_captured_too(self) -> None:
        pipe = pipeline()
        with cached(pipe, interval=2):
            expected = latents(pipe)
        with cached(pipe, interval=2, compile={"backend": "eager"}, cuda_graphs=True):
            assert torch.equal(latents(pipe), expected)
        assert _captures() == 2

    def test_inference_mode_and_no_grad_share_graphs(self) -> None:
        model, (sample, _, context) = unet("sd-1.5"), inputs("sd-1.5")[0]
        with cached(model, interval=1, cuda_graphs=True):
            with torch.inference_mode():
                first = model(sample, 900, context).sample
            assert torch.equal(model(sample, 900, context).sample, first)
        assert _captures() == 1

    def test_where_gradients_are_recorded_no_graph_runs(self) -> None:
        model, (sample, _, context) = unet("sd-1.5"), inputs("sd-1.5")[0]
        with cached(model, interval=1, cuda_graphs=True), torch.enable_grad():
            leaf = sample.clone().requires_grad_()
            model(leaf, 900, context).sample.sum().backward()
        assert leaf.grad is not None
        assert _captures() == 0

    def test_autocast_has_graphs_of_its_own(self) -> None:
        model, (sample, _, context) = unet("sd-1.5"), inputs("sd-1.5")[0]
        with cached(model, interval=1, cuda_graphs=True):
            plain = model(sample, 900, context).sample
            with torch.autocast("cpu", dtype=torch.bfloat16):
                cast = model(sample, 900, context).sample
            assert torch.equal(model(sample, 900, context).sample, plain)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(cast, model(sample, 900, context).sample)
        assert _captures() == 2


def _mask() -> Tensor:
    return torch.tensor([[1, 1, 0, 0, 0]] * 2)


def test_what_cannot_be_captured_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")

    monkeypatch.setattr(graphs_module.Recorder, "capture", fail)
    model, (args, kwargs) = _on_device(unet("ddpm")), _on_device_all(inputs("ddpm"))
    refused = pytest.raises(DeepCacheError, match=r"full step cannot be captured .*not permitted.*reduce-overhead'$")
    with refused, cached(model, interval=2, cuda_graphs=True):
        model(*args, **kwargs)


@pytest.mark.parametrize("compile", ["reduce-overhead", "max-autotune", {"mode": "reduce-overhead"}])
def test_two_who_would_capture_are_refused(compile: Any) -> None:  # noqa: A002
    with (
        pytest.raises(DeepCacheError, match="makes CUDA graphs itself"),
        cached(unet("ddpm"), interval=2, compile=compile, cuda_graphs=True),
    ):
        pass


def test_a_unet_on_the_cpu_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = unet("ddpm")
    with (
        pytest.raises(DeepCacheError, match=r"expected a U-Net on a CUDA device .* got cpu"),
        cached(model, interval=2, cuda_graphs=True),
    ):
        pass
    assert "forward" not in vars(model)


def test_a_loop_of_its_own_with_timesteps_that_are_numbers() -> None:
    model = _on_device(unet("ddpm"))
    (sample, _), _ = _on_device_all(inputs("ddpm"))
    with cached(model, interval=2) as cache:
        expected = [model(sample, t).sample for t in (900, 700, 500)]
    with cached(model, interval=2, cuda_graphs=True) as cache:
        found = [model(sample, t).sample for t in (900, 700, 500)]
    assert cache.generations[0].full_steps == (0, 2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)

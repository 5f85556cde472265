"""However generations are interleaved, each image equals the image of the same generation alone (law 8).

The oracle of every image is the same generation on another U-Net and one thread, in blocks of its own, without another
generation beside it, bit for bit.
"""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from inspect import GEN_CLOSED, getgeneratorstate
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from torch import Tensor, nn

from deepcache import DeepCacheError, cached
from deepcache.cache.timeline import Place
from tests.problems import SCHEDULERS, Aborted, aborting, small_unet

NAMES = ("ddim", "pndm", "heun", "dpm-solver++")
LANES = ("main", "a thread", "another thread", "a task", "another task")
INTERLEAVED = settings(max_examples=10, stateful_step_count=20, deadline=None, derandomize=True, database=None)

Block = tuple[int, int, int, int]  # its number, interval, branch, order
Denoising = Generator[None, "Step", Tensor]


@cache
def _other() -> nn.Module:
    """One U-Net serves all generations alone: each block leaves it as it was."""
    return small_unet()


@dataclass(frozen=True)
class Step:
    """How a step is made: the blocks around it, the blocks reset just before it, and the size of its input."""

    blocks: tuple[Block, ...]
    resets: tuple[Block, ...] = ()
    repeats: int = 1
    padding: int = 0
    callback: Callable[[], None] = lambda: None


@dataclass
class Live:
    """A generation under way, and a record from which `_alone` makes the same generation again."""

    lane: str
    num_calls: int
    denoising: Denoising
    again: Callable[[nn.Module], tuple[Any, Denoising]]
    steps: list[Step] = field(default_factory=list)
    resets: tuple[Block, ...] = ()


def _denoising(model: nn.Module, scheduler: Any, num_steps: int, seed: int, num_calls: int) -> Denoising:
    """Run one generation, one step for each `Step` that is sent; a step that fails is repeated with the next `Step`."""
    sample = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    scheduler.set_timesteps(num_steps)
    for t in scheduler.timesteps:
        while True:
            step = yield
            given = nn.functional.pad(scheduler.scale_model_input(sample, t), (0, step.padding))
            given = given.repeat(step.repeats, 1, 1, 1)
            try:
                noise = sum(model(given * (1 - i / 2), t).sample[:1, ..., :8] for i in range(num_calls))
            except Aborted:
                continue
            break
        sample = scheduler.step(noise, t, sample).prev_sample
        step.callback()
    return sample


def _alone(live: Live) -> Tensor:
    """Return the image of the same steps in blocks of their own."""
    owner, denoising = live.again(_other())
    opened: list[tuple[Block, ExitStack, Any]] = []

    def align(blocks: tuple[Block, ...]) -> None:
        while opened and tuple(block for block, _, _ in opened) != blocks[: len(opened)]:
            opened.pop()[1].close()
        for block in blocks[len(opened) :]:
            stack = ExitStack()
            opened.append((block, stack, stack.enter_context(_cached(owner, block))))

    try:
        next(denoising)
        for step in live.steps:
            align(step.blocks)
            for block, _, cache in opened:
                if block in step.resets:
                    cache.reset()
            denoising.send(step)
    except StopIteration as over:
        return over.value
    finally:
        align(())
    raise AssertionError("the generation made more steps with others than alone")


def _cached(owner: Any, block: Block) -> Any:
    _, interval, branch, order = block
    return cached(owner, interval=interval, branch=branch, order=order)


async def _serve(queue: asyncio.Queue[tuple[Callable[[], Any], Future[Any]] | None]) -> None:
    """Run the functions from a queue in the context of this task, one after the other, until None comes."""
    while (given := await queue.get()) is not None:
        act, done = given
        try:
            done.set_result(act())
        except BaseException as error:
            done.set_exception(error)


def _finish(denoising: Denoising, step: Step) -> tuple[Tensor, int]:
    """Finish a generation under way; return its image and the number of steps that it took from here."""
    num_steps = 0
    try:
        while True:
            num_steps += 1
            denoising.send(step if num_steps == 1 else replace(step, resets=()))
    except StopIteration as over:
        return over.value, num_steps


def _forked(act: Callable[[], tuple[Tensor, int]]) -> tuple[Tensor, int]:
    """Return what a function returns in a forked copy of this process."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads are idle
        process = os.fork()
    if process == 0:
        try:
            image, number = act()
            os.write(writer, bytes([number]) + image.numpy().tobytes())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        number, *rest = stream.read()
    os.waitpid(process, 0)
    return torch.frombuffer(bytearray(rest), dtype=torch.float32).reshape(1, 3, 8, 8), number


class Interleaved(RuleBasedStateMachine):
    """Runs generations on one U-Net step by step; three threads and two asyncio tasks take turns."""

    plans = st.tuples(st.integers(2, 4), st.integers(-1, 2), st.integers(0, 2))
    what = st.tuples(st.sampled_from(NAMES), st.integers(4, 6), st.integers(0, 9), st.integers(1, 2))
    lanes = st.sampled_from(LANES)
    pick = st.integers(0, 99)

    def __init__(self) -> None:
        super().__init__()
        self.model = small_unet()
        self.owner = SimpleNamespace(unet=self.model, scheduler=None)
        self.numbers = count()
        self.blocks: dict[str, list[tuple[Block, ExitStack, Any]]] = {lane: [] for lane in LANES}
        self.live: list[Live] = []
        self.loop = asyncio.new_event_loop()
        self.threads = {lane: ThreadPoolExecutor(1) for lane in (*LANES[1:3], "tasks")}
        self.threads["tasks"].submit(self.loop.run_forever)
        self.queues = {lane: asyncio.Queue[tuple[Callable[[], Any], Future[Any]] | None]() for lane in LANES[3:]}
        self.tasks = {
            lane: asyncio.run_coroutine_threadsafe(_serve(self.queues[lane]), self.loop) for lane in LANES[3:]
        }
        self.running: str = "main"

    @initialize(is_shared=st.booleans(), plans=st.tuples(*[plans] * len(LANES)), begun=st.lists(st.tuples(lanes, what)))
    def begin_blocks(self, is_shared: bool, plans: Any, begun: list[Any]) -> None:  # noqa: FBT001
        """Enter one block around all threads and tasks, or one block in each."""
        self.is_shared = is_shared
        for lane, plan in zip(LANES, plans, strict=True):
            if lane == "main" or not is_shared:
                self._enter(lane, plan)
        for lane, what in begun:
            self._begin(lane, what)

    @rule(lane=lanes, what=what)
    def begin(self, lane: str, what: tuple[str, int, int, int]) -> None:
        """Begin a generation with a scheduler of its own, which the block's pipeline gets as well, at any time."""
        self._begin(lane, what)

    def _begin(self, lane: str, what: tuple[str, int, int, int]) -> Live:
        name, num_steps, seed, num_calls = what

        def start(model: nn.Module) -> tuple[Any, Denoising]:
            scheduler = SCHEDULERS[name]()
            owner = SimpleNamespace(unet=model, scheduler=scheduler)
            return owner, _denoising(model, scheduler, num_steps, seed, num_calls)

        owner, denoising = start(self.model)
        self.owner.scheduler = owner.scheduler
        live = Live(lane, num_calls, denoising, start)
        self._on(lane, lambda: next(denoising))
        self.live.append(live)
        return live

    @precondition(lambda self: self.live)
    @rule(at=pick, num_steps=st.integers(1, 3), repeats=st.integers(1, 2), padding=st.sampled_from((0, 4)))
    def advance(self, at: int, num_steps: int, repeats: int, padding: int) -> None:
        """Make steps with inputs of the same size as before, or of another size."""
        live = self._pick(at)
        for _ in range(num_steps):
            if live in self.live:
                self._advance(live, repeats=repeats, padding=padding)

    @precondition(lambda self: self.live)
    @rule(at=pick, what=what)
    def generate_from_a_callback(self, at: int, what: tuple[str, int, int, int]) -> None:
        outer = self._pick(at)

        def callback() -> None:
            inner = self._begin(outer.lane, what)
            while inner in self.live:
                self._advance(inner)

        self._advance(outer, callback=callback)

    @precondition(lambda self: self.live)
    @rule(at=pick, in_callback=st.booleans())
    def abort(self, at: int, in_callback: bool) -> None:  # noqa: FBT001
        live = self._pick(at)
        self.live.remove(live)

        def callback() -> None:
            raise Aborted

        if in_callback:
            with pytest.raises(Aborted):
                self._on(live.lane, lambda: live.denoising.send(Step((), callback=callback)))
        self._on(live.lane, live.denoising.close)

    @precondition(lambda self: self.live)
    @rule(at=pick, call=pick)
    def fail_in_a_step(self, at: int, call: int) -> None:
        """Fail in a U-Net call, as out of memory does; the next call begins this generation anew, and no other one."""
        live = self._pick(at)
        self.live.remove(live)  # another error ends it
        with aborting(self.model, call % live.num_calls):
            self._on(live.lane, lambda: live.denoising.send(Step(())))
        self.live.append(live)
        live.resets += (self._innermost(live.lane)[0],)

    @precondition(lambda self: any(live.lane == "main" for live in self.live))
    @rule(at=pick)
    def finish_in_a_forked_process(self, at: int) -> None:
        """Finish a copy of a generation in another process; here the generation goes on as if nothing had happened."""
        own = [live for live in self.live if live.lane == "main"]
        live = own[at % len(own)]
        step = Step(self._stack("main"), live.resets)
        image, num_steps = _forked(lambda: _finish(live.denoising, step))
        twin = replace(live, steps=[*live.steps, step, *[replace(step, resets=())] * (num_steps - 1)])
        assert torch.equal(image, _alone(twin)), "an image of a forked process differs from the same generation's alone"

    @rule(lane=lanes)
    def reset(self, lane: str) -> None:
        block, _, cache = self._innermost(lane)
        self._on(lane, cache.reset)
        for live in self.live:
            if live.lane == lane:
                live.resets += (block,)

    @precondition(lambda self: not self.is_shared)
    @rule(lane=lanes, plan=plans)
    def enter_a_block(self, lane: str, plan: tuple[int, int, int]) -> None:
        self._enter(lane, plan)

    @precondition(lambda self: any(len(blocks) > 1 for blocks in self.blocks.values()))
    @rule(at=pick)
    def leave_a_block(self, at: int) -> None:
        nested = [lane for lane, blocks in self.blocks.items() if len(blocks) > 1]
        self._leave(nested[at % len(nested)])

    def teardown(self) -> None:
        """Finish all generations and leave all blocks; then the U-Net must be what it was."""
        try:
            while self.live:
                self._advance(self.live[0])
        finally:
            for lane in LANES:
                while self.blocks[lane]:
                    self._leave(lane)
            for lane, task in self.tasks.items():
                self.loop.call_soon_threadsafe(self.queues[lane].put_nowait, None)
                task.result(timeout=60)
            self.loop.call_soon_threadsafe(self.loop.stop)
            for thread in self.threads.values():
                thread.shutdown()
            self.loop.close()
        assert "forward" not in vars(self.model)

    def _advance(self, live: Live, **how: Any) -> None:
        step = Step(self._stack(live.lane), live.resets, **how)
        live.steps.append(Step(step.blocks, step.resets, step.repeats, step.padding))
        live.resets = ()

        def send() -> Tensor | None:
            try:
                return live.denoising.send(step)
            except StopIteration as over:
                return over.value

        assert getgeneratorstate(live.denoising) != GEN_CLOSED, "a generation goes on after a call of it has failed"
        self.live.remove(live)
        image = self._on(live.lane, send)
        if image is None:
            self.live.append(live)
        else:
            assert torch.equal(image, _alone(live)), "an image differs from the same generation's alone"

    def _on(self, lane: str, act: Callable[[], Any]) -> Any:
        """Run a function on a lane's thread or task, or at once if this code runs there already."""
        if lane == self.running:
            return act()
        before, self.running = self.running, lane
        try:
            if lane == "main":
                return act()
            if lane in self.threads:
                return self.threads[lane].submit(act).result(timeout=60)
            done: Future[Any] = Future()
            self.loop.call_soon_threadsafe(self.queues[lane].put_nowait, (act, done))
            return done.result(timeout=60)
        finally:
            self.running = before

    def _pick(self, at: int) -> Live:
        return self.live[at % len(self.live)]

    def _innermost(self, lane: str) -> tuple[Block, ExitStack, Any]:
        return self.blocks["main" if self.is_shared else lane][-1]

    def _stack(self, lane: str) -> tuple[Block, ...]:
        return tuple(block for block, _, _ in self.blocks["main" if self.is_shared else lane])

    def _enter(self, lane: str, plan: tuple[int, int, int]) -> None:
        stack, block = ExitStack(), (next(self.numbers), *plan)
        cache = self._on(lane, lambda: stack.enter_context(_cached(self.owner, block)))
        self.blocks[lane].append((block, stack, cache))

    def _leave(self, lane: str) -> None:
        self._on(lane, self.blocks[lane].pop()[1].close)


def test_interleaved_generations_equal_the_same_generations_alone() -> None:
    run_state_machine_as_test(Interleaved, settings=INTERLEAVED)


class _OfAll:
    """A broken variant of the context variable, which mixes the entries of all threads and tasks."""

    def __init__(self) -> None:
        self.names: Any = SimpleNamespace()

    def get(self) -> Any:
        return getattr(self.names, "blocks", ())

    def set(self, blocks: Any) -> None:
        self.names.blocks = blocks


class _OfThreads(_OfAll):
    def __init__(self) -> None:
        self.names = threading.local()


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("deepcache.cache.tracking.place", lambda timestep, _: Place(0, timestep.storage_offset())),
        ("deepcache.cache.caching._fingerprint", lambda *_: ()),
        ("deepcache.cache.installing._ENTERED", _OfThreads()),
        ("deepcache.cache.installing._ENTERED", _OfAll()),
    ],
    ids=["all timesteps are one memory", "sizes are one", "tasks are one", "threads are one"],
)
def test_broken_state_is_found(monkeypatch: pytest.MonkeyPatch, name: str, broken: Any) -> None:
    """Test of the test."""
    monkeypatch.setattr(name, broken)
    only_found = settings(INTERLEAVED, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises((AssertionError, RuntimeError, DeepCacheError)):
        run_state_machine_as_test(Interleaved, settings=only_found)

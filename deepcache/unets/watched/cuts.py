"""Find where a network can be cut: at modules whose result may be replaced while the sample reaches the output.

A shallow step takes such a result from an earlier step. Then the module, the gate, need not run, and neither need all
modules that nothing else reads: these are dead. Several gates may leave the same operations alive on the way down, as
the modules one after the other on the way up do; of these, the one that saves most is taken. The branches are the
longest chain of cuts of which each saves less than the one before and leaves all alive that the one before leaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import nn

from deepcache.unets.watched.graph import Graph, ModuleCall

LEAST = 0.02  # the share of the multiplications that a cut has to save
LEAST_OF_ALL = 0.1  # the share that the outermost cut has to save; without skips, it leaves out half a block at most
_FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)  # may run as one operation


@dataclass(frozen=True)
class Cut:
    """A place at which a network is cut.

    Attributes:
        gate: the path of the module whose result is kept; of several, the first.
        others: the other paths of this module.
        leaf: which tensor of that result it is.
        dead: the paths of the other modules that do not run on a shallow step, without those inside of them.
        saved: the share of the multiplications that a shallow step saves, 0..1.
        is_random: whether a full step draws random numbers.
    """

    gate: str
    others: tuple[str, ...]
    leaf: int
    dead: tuple[str, ...]
    saved: float
    is_random: bool

    @property
    def gates(self) -> tuple[str, ...]:
        """The paths of the gate."""
        return self.gate, *self.others


@dataclass(frozen=True)
class _Candidate:
    """A cut, with the operations on the way down that stay alive, and those that need not run."""

    cut: Cut
    down: frozenset[int]
    idle: frozenset[int]


def idle_modules(network: nn.Module, cut: Cut) -> set[nn.Module]:
    """Return the modules that do not run on a shallow step."""
    return {module for path in (cut.gate, *cut.dead) for module in network.get_submodule(path).modules()}


def cuts_of(network: nn.Module, graph: Graph) -> tuple[Cut, ...]:
    """Return the cuts of a watched network, one a branch, the outermost first; none if it cannot be cut."""
    best: dict[frozenset[int], _Candidate] = {}
    for candidate in _candidates(network, graph):
        other = best.get(candidate.down)
        if other is None or candidate.cut.saved > other.cut.saved:
            best[candidate.down] = candidate
    found = [each.cut for each in _chain(sorted(best.values(), key=lambda each: -each.cut.saved))]
    return tuple(found) if found and found[0].saved >= LEAST_OF_ALL else ()


def _candidates(network: nn.Module, graph: Graph) -> Iterator[_Candidate]:
    paths, readers = _paths(network), graph.readers()
    whole, total = graph.needed(graph.ends), sum(graph.products)
    down = _after(readers, graph.sample) | {graph.sample}
    times = Counter(call.module for call in graph.calls if call.operations)
    fused = {
        inner for each in network.modules() if isinstance(each, _FUSED) for inner in each.modules() if inner is not each
    }
    seen: set[int] = set()
    in_turn = sorted(graph.calls, key=lambda each: (each.start, -each.stop, each.depth))  # outer ones first
    for call in sorted(graph.calls, key=lambda each: each.depth):  # the outermost module that hands a result on
        if times[call.module] > 1 or call.module not in paths or call.module in fused:
            continue
        for leaf, maker in enumerate(call.makers):
            if maker not in call.operations or maker in seen or maker not in whole or maker not in down:
                continue
            live = graph.needed(graph.ends, maker)
            if graph.sample not in live or not live.isdisjoint(call.operations):
                continue
            kept = frozenset((live - _after(readers, maker)) & down)
            if not any(graph.products[number] for number in kept):  # the sample is handed on as it came
                continue
            seen.add(maker)
            dead = _dead(in_turn, live, call)
            idle = frozenset(number for each in (*dead, call) for number in each.operations)
            saved = sum(graph.products[number] for number in idle) / total if total else 0.0
            if saved >= LEAST:
                top = tuple(path for each in dead for path in paths.get(each.module, ()))
                gate, *others = paths[call.module]
                cut = Cut(gate, tuple(others), leaf, top, saved, graph.is_random)
                yield _Candidate(cut, kept, idle)


def _dead(in_turn: Sequence[ModuleCall], live: set[int], gate: ModuleCall) -> list[ModuleCall]:
    """Return the outermost calls, other than the gate and those around it, of modules that run nothing alive."""
    num_live = [0, *accumulate(number in live for number in range(max(call.stop for call in in_turn)))]
    alive = {call.module for call in in_turn if not call.operations or num_live[call.start] < num_live[call.stop]}
    alive |= {call.module for call in in_turn if call.start <= gate.start and gate.stop <= call.stop}
    found: list[ModuleCall] = []
    end = -1
    for call in in_turn:
        if call is gate:
            end = call.stop
        elif call.start >= end and call.module not in alive:
            found.append(call)
            end = call.stop
    return found


def _after(readers: Sequence[Sequence[int]], number: int) -> set[int]:
    """Return the operations that a result reaches."""
    found: set[int] = set()
    left = list(readers[number])
    while left:
        other = left.pop()
        if other not in found:
            found.add(other)
            left.extend(readers[other])
    return found


def _chain(found: Sequence[_Candidate]) -> list[_Candidate]:
    """Return the longest chain in which each candidate's idle operations are fewer, and among the ones before."""
    chains: list[list[_Candidate]] = []
    for number, each in enumerate(found):
        heads = [chains[other] for other in range(number) if each.idle < found[other].idle]
        longest = max(heads, key=lambda chain: (len(chain), sum(one.cut.saved for one in chain)), default=[])
        chains.append([*longest, each])
    return max(chains, key=lambda chain: (len(chain), sum(one.cut.saved for one in chain)), default=[])


def _paths(network: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    found: dict[nn.Module, tuple[str, ...]] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        found[module] = (*found.get(module, ()), path)
    return found

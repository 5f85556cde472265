"""The steps of a network of any class, cut where a watched call says, and the proof that the cut is right.

A network may do what a watched call does not tell: keep something in a module, call a module past its attributes, or
take another path. So before the first step on inputs of a form, a full step on a view, and a shallow step with its
feature, have to give, bit for bit, what the network itself gives; and every shallow step has to call the modules that
are replaced as often as that one did.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils import _pytree as pytree

from deepcache.errors import FAILURES, UnsupportedUNetError, first_line, is_out_of_memory
from deepcache.plan import IDLE
from deepcache.unets.calls import Call, fingerprint, shape_of
from deepcache.unets.family import Feature, require_branch
from deepcache.unets.output import TakesAnything
from deepcache.unets.structure import Structure, on_meta, structure_of
from deepcache.unets.watched.cuts import Cut, cuts_of, idle_modules
from deepcache.unets.watched.graph import watch
from deepcache.unets.watched.views import Passage, Results, attribute_set, full_view, shallow_view

States = dict[torch.device, Tensor]  # of the random generators of some devices
_INSTEAD = f"branch={IDLE} caches any network"
MOST_FORMS = 32  # of calls, by their shapes and options, that are remembered


def cuts_for(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Cut, ...]:
    """Return where one call of a network shows that it can be cut, the outermost cut first.

    Nothing is computed on the meta device.

    Raises:
        UnsupportedUNetError: the network cannot be cut; the message says why.
    """
    graph, name = watch(network, args, kwargs), type(network).__name__
    if not graph.inputs.isdisjoint(graph.needed(graph.choices)):
        raise UnsupportedUNetError(
            f"expected a U-Net whose path does not depend on the values of its inputs; a {name} reads them in Python; "
            f"{_INSTEAD}"
        )
    if cuts := cuts_of(network, graph):
        return cuts
    raise UnsupportedUNetError(
        f"expected a U-Net with skip connections; in a {name} the sample reaches the output through every module that "
        f"would save something; {_INSTEAD}"
    )


@dataclass(frozen=True)
class _Proven:
    """A proof holds for calls of one form the cut, what dead modules return, and how often stubs are called."""

    structure: Structure
    cut: Cut
    results: Results
    calls: dict[str, int]


@dataclass
class _Known:
    """The cuts and the proofs that a U-Net's calls have given so far are kept here."""

    cuts: dict[Any, tuple[Structure, tuple[Cut, ...]]] = field(default_factory=dict)  # by the form of a call
    proven: dict[Any, _Proven] = field(default_factory=dict)  # by the fingerprint of a call
    turn: threading.RLock = field(default_factory=threading.RLock)


def run_full(view: Any, passage: Passage, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
    """Run a full step on its view."""
    output = view.forward(*args, **kwargs)
    if passage.feature is None:
        raise _other_path(view)
    feature, passage.feature = passage.feature, None
    return output, (feature,)


def run_shallow(view: Any, passage: Passage, expected: dict[str, int], *args: Any, **kwargs: Any) -> Any:
    """Run a shallow step on its view."""
    output = view.forward(*args, **kwargs)
    if passage.calls != expected:
        raise _other_path(view)
    return output


def _other_path(network: nn.Module) -> UnsupportedUNetError:
    return UnsupportedUNetError(
        f"expected a {type(network).__name__} to call the same modules on every step; it took another path on this "
        f"step; {_INSTEAD}"
    )


class Randomness:
    """The random numbers that a call draws, so that it can be repeated with the same ones."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        self._devices = {torch.device("cpu")} | {each.device for each in tensors if each.device.type == "cuda"}
        self._before = self._states()
        self._is_used = True

    def finish(self, *, is_used: bool) -> None:
        """Say that the call is over, and whether it drew random numbers.

        A call that drew none is repeated without a change of the generators, which other threads may use meanwhile.
        """
        after = self._states()
        self._is_used = is_used and not all(torch.equal(state, after[device]) for device, state in self._before.items())

    def rewind(self) -> None:
        """Set the generators as they were before the call."""
        self._set(self._before)

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Within the block, random numbers are those of the call; afterwards the generators are as they were."""
        if not self._is_used:
            yield
            return
        now = self._states()
        self._set(self._before)
        try:
            yield
        finally:
            self._set(now)

    def _states(self) -> States:
        return {
            device: torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
            for device in self._devices
        }

    def _set(self, states: States) -> None:
        for device, state in states.items():
            if device.type == "cpu":
                torch.set_rng_state(state)
            else:
                torch.cuda.set_rng_state(state, device)


class CutWatchedUNet(TakesAnything):
    """The `CutUNet` of a network of any class; its first call shows where it can be cut."""

    run_full = staticmethod(run_full)
    run_shallow = staticmethod(run_shallow)

    def __init__(self, unet: nn.Module, branch: int) -> None:
        self._unet, self._branch, self._known = unet, branch, _Known()

    def full(self, *args: Any, **kwargs: Any) -> tuple[Any, Feature]:
        with self._known.turn:
            found = self._find(args, kwargs)
            if found is None:
                return self._prove(args, kwargs)
        passage = Passage()
        return run_full(full_view(self._unet, found.cut, passage), passage, *args, **kwargs)

    def shallow(self, feature: Feature, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = self.shallow_call(feature, args, kwargs)
        return run_shallow(*args, **kwargs)

    def full_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        with self._known.turn:
            found = self._find(args, kwargs)
            if found is None:
                self._prove(*_copied((args, kwargs)))
                found = self._proven(args, kwargs)
        passage = Passage()
        return (full_view(self._unet, found.cut, passage), passage, *args), kwargs

    def shallow_call(self, feature: Feature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        found = self._proven(args, kwargs)
        passage = Passage(feature[0])
        return (shallow_view(self._unet, found.cut, passage, found.results), passage, found.calls, *args), kwargs

    def _proven(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Proven:
        found = self._known.proven.get(fingerprint((args, kwargs)))
        if found is None:  # dropped, since calls of many other forms came
            with self._known.turn:
                self._prove(*_copied((args, kwargs)))
            found = self._known.proven[fingerprint((args, kwargs))]
        return found

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Proven | None:
        """Return what is known of a call, unless modules have come or gone since."""
        found = self._known.proven.get(fingerprint((args, kwargs)))
        return found if found is not None and found.structure is structure_of(self._unet) else None

    def _prove(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Feature]:
        """Run the U-Net itself, a full step and a shallow one with its feature; return what the U-Net gives.

        Raises:
            UnsupportedUNetError: the U-Net cannot be cut, or the steps differ from it.
            DeepCacheError: the U-Net has no such branch.
        """
        cut = self._cut(args, kwargs)
        again, once_more = _copied((args, kwargs)), _copied((args, kwargs))
        random = Randomness(args, kwargs)
        output = type(self._unet).forward(self._unet, *args, **kwargs)
        random.finish(is_used=cut.is_random)
        feature, results = self._recorded(cut, output, random, *again)
        calls = self._stood_in(cut, output, random, feature, results, *once_more)
        known = self._known.proven
        while len(known) >= MOST_FORMS:
            del known[next(iter(known))]
        known[fingerprint((args, kwargs))] = _Proven(structure_of(self._unet), cut, results, calls)
        return output, feature

    def _recorded(
        self, cut: Cut, output: Any, random: Randomness, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Feature, Results]:
        """Run a full step on a view, which has to give the output; return the feature, and what modules gave."""
        passage, results = Passage(), Results()
        view = full_view(self._unet, cut, passage, results)
        with self._refusing(cut, what := "a full step on a copy of its outer modules"), random.repeated():
            found, feature = run_full(view, passage, *args, **kwargs)
        self._require_alike(cut, view, what, found, output)
        results.finish()
        return feature, results

    def _stood_in(
        self,
        cut: Cut,
        output: Any,
        random: Randomness,
        feature: Feature,
        results: Results,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, int]:
        """Run a shallow step with the feature, which has to give the output; return what it called, and how often."""
        passage = Passage(feature[0])
        dead = idle_modules(self._unet, cut)
        view = shallow_view(self._unet, cut, passage, results)
        what = "a shallow step with its own feature"
        with self._refusing(cut, what), random.repeated(), _called() as called:
            found = view.forward(*args, **kwargs)
        if not dead.isdisjoint(called):
            raise self._refusal(cut, "a module that would be left out is called past the network's own attributes")
        self._require_alike(cut, view, what, found, output)
        return dict(passage.calls)

    @contextmanager
    def _refusing(self, cut: Cut, what: str) -> Iterator[None]:
        """Within the block, refuse the cut where the network raises."""
        try:
            yield
        except FAILURES as error:
            if is_out_of_memory(error):
                raise
            raise self._refusal(cut, f"{what} raises {first_line(error)!r}") from error

    def _require_alike(self, cut: Cut, view: nn.Module, what: str, found: Any, output: Any) -> None:
        """Refuse the cut if a step on a view keeps something in a copied module, or gives another output."""
        if (name := attribute_set(view, self._unet)) is not None:
            raise self._refusal(cut, f"it sets its attribute {name} in each call, which a copy of it would lose")
        if not _are_equal(found, output):
            raise self._refusal(cut, f"{what} gives something else")

    def _refusal(self, cut: Cut, why: str) -> UnsupportedUNetError:
        name, hint = type(self._unet).__name__, "; call its eval() first" if self._unet.training else ""
        return UnsupportedUNetError(
            f"a {name} cannot be cut at {cut.gate}: {why}{hint}; take another branch, or {_INSTEAD}"
        )

    def _cut(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cut:
        """Return the cut of the branch, as a call of this form shows it; without data where that is possible."""
        form, structure = fingerprint((args, kwargs), with_sizes=False), structure_of(self._unet)
        known = self._known.cuts.get(form)
        if known is None or known[0] is not structure:
            known = self._known.cuts[form] = structure, _found(self._unet, args, kwargs)
        cuts = known[1]
        return cuts[require_branch(self._branch, len(cuts))]


def _found(unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Cut, ...]:
    """Return the cuts that a call shows on the meta device, or on data if the network does not run there."""
    random = Randomness(args, kwargs)
    with torch.inference_mode(mode=False):  # inference tensors do not tell all operations
        try:
            meta = pytree.tree_map_only(Tensor, shape_of, _copied((args, kwargs)))
            found = cuts_for(on_meta(unet), *meta)
            if found[0].is_random:  # parts of it may run on the CPU
                random.rewind()
        except FAILURES:
            random.rewind()
            with random.repeated():
                found = cuts_for(unet, *_copied((args, kwargs)))
    return found


@contextmanager
def _called() -> Iterator[set[nn.Module]]:
    """Within the block, collect the modules that this thread calls."""
    found: set[nn.Module] = set()
    thread = threading.get_ident()

    def note(module: nn.Module, _args: Any) -> None:
        if threading.get_ident() == thread:
            found.add(module)

    with register_module_forward_pre_hook(note):
        yield found


def _are_equal(one: Any, other: Any) -> bool:
    """Return whether two outputs have the same form and the same bits, except that any NaN equals any other."""
    (leaves, spec), (others, other_spec) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    pairs = [(a, b) for a, b in zip(leaves, others, strict=False) if isinstance(a, Tensor) or isinstance(b, Tensor)]
    return spec == other_spec and all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and (a.is_meta or _are_same(a, b))
        for a, b in pairs
    )


def _are_same(one: Tensor, other: Tensor) -> bool:
    if one.is_floating_point() or one.is_complex():
        return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    return torch.equal(one, other)


def _copied(value: Any) -> Any:
    """Return arguments with copies of their tensors and generators, so that a network changes the copies alone."""
    copied = pytree.tree_map_only(Tensor, Tensor.clone, value)
    return pytree.tree_map_only(torch.Generator, torch.Generator.clone_state, copied)

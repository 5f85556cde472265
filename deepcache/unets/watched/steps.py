"""The steps of a network of any class, cut where a watched call says, and the proof that the cut is right.

A network may do what a watched call does not tell: write into a tensor that it returned, keep something in a module, or
take another path. So before the first shallow step on inputs of a shape, a shallow step with the feature of its own
full step has to give, bit for bit, what the full step gave; and every shallow step has to call the modules that are
replaced as often as that one did.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deepcache.errors import FAILURES, UnsupportedUNetError, first_line
from deepcache.plan import IDLE
from deepcache.unets.calls import Call, fingerprint, shape_of
from deepcache.unets.family import Feature, require_branch
from deepcache.unets.output import Form
from deepcache.unets.structure import Structure, on_meta, structure_of
from deepcache.unets.watched.cuts import Cut, cuts_of
from deepcache.unets.watched.graph import watch
from deepcache.unets.watched.views import Passage, Results, full_view, shallow_view

_INSTEAD = f"branch={IDLE} caches any network"


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
    """What is known of calls of one shape: where they are cut, what dead modules return, and what a step calls."""

    structure: Structure
    cut: Cut
    results: Results
    calls: dict[str, int]


@dataclass
class _Known:
    """What a U-Net's calls have shown so far."""

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


class CutWatchedUNet:
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
            if self._find(args, kwargs) is None:
                self._prove(*_copied((args, kwargs)))
        passage = Passage()
        return (full_view(self._unet, self._proven(args, kwargs).cut, passage), passage, *args), kwargs

    def shallow_call(self, feature: Feature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        found = self._proven(args, kwargs)
        passage = Passage(feature[0])
        return (shallow_view(self._unet, found.cut, passage, found.results), passage, found.calls, *args), kwargs

    def require_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Every input can be taken; the first call with inputs of a form is watched."""

    def tensors_of(self, output: Any) -> tuple[Tensor, ...]:
        return Form.of(output)[1]

    def with_tensors(self, output: Any, tensors: tuple[Tensor, ...]) -> Any:
        return Form.of(output)[0].output(tensors)

    def _proven(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Proven:
        return self._known.proven[fingerprint((args, kwargs))]

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Proven | None:
        """Return what is known of a call, unless modules have come or gone since."""
        found = self._known.proven.get(fingerprint((args, kwargs)))
        return found if found is not None and found.structure is structure_of(self._unet) else None

    def _prove(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Feature]:
        """Run a full step, and a shallow one with its feature; return what the full step gives.

        Raises:
            UnsupportedUNetError: the U-Net cannot be cut, or the two steps differ.
            DeepCacheError: the U-Net has no such branch.
        """
        cut = self._cut(args, kwargs)
        again, once_more = _copied((args, kwargs)), _copied((args, kwargs))
        random = torch.get_rng_state()
        output, feature, results, is_rewritten = _recorded(self._unet, cut, args, kwargs)
        if is_rewritten:
            cut = replace(cut, is_rewritten=True)
            torch.set_rng_state(random)
            output, feature, results, _ = _recorded(self._unet, cut, *once_more)
        after = torch.get_rng_state()
        passage = Passage(feature[0])
        try:
            torch.set_rng_state(random)
            found = shallow_view(self._unet, cut, passage, results).forward(*again[0], **again[1])
        except FAILURES as error:
            raise self._refusal(cut, f"raises {first_line(error)!r}") from error
        finally:
            torch.set_rng_state(after)
        if not _are_equal(found, output):
            raise self._refusal(cut, "gives something else")
        self._known.proven[fingerprint((args, kwargs))] = _Proven(
            structure_of(self._unet), cut, results, dict(passage.calls)
        )
        return output, feature

    def _refusal(self, cut: Cut, what: str) -> UnsupportedUNetError:
        hint = "; it is in training mode, so call its eval() first" if self._unet.training else ""
        return UnsupportedUNetError(
            f"a {type(self._unet).__name__} cannot be cut at {cut.gate}: a shallow step with the full step's own "
            f"feature {what}{hint}; take another branch, or branch={IDLE}"
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
    with torch.inference_mode(mode=False), torch.random.fork_rng():  # inference tensors do not tell all operations
        try:
            meta = pytree.tree_map_only(Tensor, shape_of, (args, kwargs))
            return cuts_for(on_meta(unet), *meta)
        except FAILURES:
            return cuts_for(unet, *_copied((args, kwargs)))


def _recorded(
    unet: nn.Module, cut: Cut, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Feature, Results, bool]:
    """Run a full step; return its output, the feature, the results of dead modules, and whether the feature changed."""
    passage, results = Passage(), Results()
    output, (feature,) = run_full(full_view(unet, cut, passage, results), passage, *args, **kwargs)
    results.finish()
    return output, (feature,), results, passage.version is not None and feature._version != passage.version


def _are_equal(one: Any, other: Any) -> bool:
    """Return whether two outputs have the same form and the same bits, except that any NaN equals any other."""
    (form, tensors), (other_form, others) = Form.of(one), Form.of(other)
    return form.spec == other_form.spec and all(
        a.shape == b.shape and (a.is_meta or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
        for a, b in zip(tensors, others, strict=True)
    )


def _copied(value: Any) -> Any:
    """Return arguments with copies of their tensors, so that a network that writes into them changes copies alone."""
    return pytree.tree_map_only(Tensor, Tensor.clone, value)

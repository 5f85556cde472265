"""A warning points at the user's line, whatever stands between it and the library (an exact law)."""

from __future__ import annotations

import linecache
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from deepcache import DeepCacheWarning, cached
from tests.pipelines import workload
from tests.problems import inputs, unet

_LINE = 'work.pipe(num_inference_steps=3, **work.conditions, output_type="latent")  # the user\'s line'
pytestmark = pytest.mark.filterwarnings("always::deepcache.errors.DeepCacheWarning")


def warned(act: Callable[[], Any]) -> list[tuple[str, str]]:
    """Return the file and the line that each warning of an act points at."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", DeepCacheWarning)
        act()
    ours = [each for each in found if issubclass(each.category, DeepCacheWarning)]
    return [(each.filename, linecache.getline(each.filename, each.lineno).strip()) for each in ours]


def generate() -> None:
    work = workload("text2img")
    with cached(work.pipe, interval=3):
        work.pipe(num_inference_steps=3, **work.conditions, output_type="latent")  # the user's line


def test_warning_of_few_steps_points_at_the_call_of_the_pipeline() -> None:
    assert warned(generate) == [(__file__, _LINE)]


def test_the_same_in_a_thread() -> None:
    def act() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(generate).result()

    assert warned(act) == [(__file__, _LINE)]


def test_the_same_of_a_compiled_unet() -> None:
    """The call passes through torch.compile's wrapper; the steps run eagerly, since the warning comes before them."""

    @torch.compiler.set_stance("force_eager")
    def act() -> None:
        work = workload("text2img")
        work.pipe.unet = torch.compile(work.pipe.unet, backend="eager")
        with cached(work.pipe, interval=3):
            work.pipe(num_inference_steps=3, **work.conditions, output_type="latent")  # the user's line

    assert warned(act) == [(__file__, _LINE)]


def test_warning_of_copies_points_at_the_call_of_the_unet() -> None:
    model = unet("ddpm")
    (sample, _), given = inputs("ddpm")

    def act() -> None:
        with cached(model, interval=3):
            for step in (900, 700, 500, 300):
                model(sample, torch.tensor([step])[0], **given)

    places = warned(act)
    assert places
    assert {file for file, _ in places} == {__file__}

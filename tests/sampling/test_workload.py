"""A workload leaves its pipeline as it was, and its manifest is that of stores from before (stored values)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler

from deepcache import uniform
from deepcache.errors import DeepCacheError
from deepcache.sampling.conditions import conditions_of
from deepcache.sampling.filling import fill
from deepcache.sampling.samples import sample
from deepcache.sampling.store import Store
from deepcache.sampling.workload import Sampling, Workload, by_protocol
from tests.problems import pipeline

SAMPLING = Sampling("heun", 3, uniform(5, 2))
SEEDS = range(2)


@pytest.fixture(scope="module")
def workload() -> Workload:
    pipe = pipeline()
    return Workload(pipe, conditions_of(pipe), 2, {"guidance_scale": 1.5}, model="folder/tiny")


def test_the_pipeline_has_its_own_solver_again_after_an_error(workload):
    own, forward = workload.pipe.scheduler, workload.pipe.unet.forward

    def interrupted() -> None:
        with workload.under(SAMPLING):
            assert type(workload.pipe.scheduler).__name__ == "HeunDiscreteScheduler"
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert workload.pipe.scheduler is own
    assert workload.pipe.unet.forward == forward


def test_a_named_solver_is_made_from_the_own_configuration_however_often_it_changes(workload):
    configs = []
    with workload.under(Sampling("euler", 3)), workload.under(Sampling("ddim", 3)):
        configs.append(dict(workload.pipe.scheduler.config))
    with workload.under(Sampling("ddim", 3)):
        configs.append(dict(workload.pipe.scheduler.config))
    assert configs[0] == configs[1]


def test_calls_are_those_that_the_plan_must_have(workload):
    assert workload.num_calls(SAMPLING) == 5  # Heun calls the U-Net twice a step but the last
    assert workload.num_calls(Sampling(None, 3)) == 3
    assert isinstance(workload.pipe.scheduler, DDIMScheduler)


def test_samples_of_a_store_are_those_of_the_workload(workload, tmp_path):
    store = Store.create(tmp_path, workload.manifest(SAMPLING))
    cache = fill(store, workload, SAMPLING, SEEDS, name="fill")
    assert cache is not None
    assert {generation.full_steps for generation in cache.generations} == {SAMPLING.plan.full_steps}
    with workload.under(SAMPLING):
        images = workload.sample(SEEDS, progress=False, **SAMPLING.arguments)
        own = sample(workload.pipe, SEEDS, batch_size=2, progress=False, num_inference_steps=3, guidance_scale=1.5)
    assert torch.equal(images, own)
    assert torch.equal(store.images(SEEDS), images.mul(255).round().to(torch.uint8))


def test_a_manifest_tells_every_setting(workload):
    found = workload.manifest(SAMPLING, shard_size=7)
    assert (found.model, found.scheduler, found.num_steps, found.guidance_scale) == ("tiny", "heun", 3, 1.5)
    assert (found.batch_size, found.shard_size, found.dtype, found.image_size) == (2, 7, "fp32", [8, 8])
    assert found.plan == {"num_steps": 5, "full_steps": (0, 2, 4), "branch": 0, "order": "auto"}
    assert found.made_with["threads"] == torch.get_num_threads()
    assert workload.manifest(replace(SAMPLING, num_steps=4)).digest != found.digest


def test_what_is_not_asked_for_is_the_protocols(workload):
    pipe = workload.pipe
    found, sampling = by_protocol("mini-ldm", pipe, workload.conditions, num_steps=7)
    assert (sampling, found.guidance_scale, found.batch_size) == (Sampling("ddim", 7), 1.5, 50)
    found, sampling = by_protocol(
        "other", pipe, workload.conditions, scheduler="plms", num_steps=7, guidance_scale=2.0, batch_size=3
    )
    assert (sampling, found.guidance_scale, found.batch_size) == (Sampling("plms", 7), 2.0, 3)
    with pytest.raises(DeepCacheError, match=r"expected --scheduler, --guidance-scale, since other has no protocol"):
        by_protocol("other", pipe, workload.conditions, num_steps=7)

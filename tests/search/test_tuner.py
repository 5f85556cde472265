"""`tune`: what a plan promises holds on other seeds, and costs are exact."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from functools import cache
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tqdm import tqdm

import deepcache
from deepcache import CachePlan, DeepCacheError, cached, models, uniform
from deepcache.__main__ import main
from deepcache.costs.explain import explain
from deepcache.costs.macs import EVERYTHING
from deepcache.metrics.fidelity import psnr_each
from deepcache.models.architectures import architecture
from deepcache.models.embedded import WEIGHTS
from deepcache.sampling.conditions import conditions_of
from deepcache.sampling.samples import sample
from deepcache.sampling.schedulers import scheduler
from deepcache.sampling.workload import Sampling, Workload
from deepcache.search.candidates import Candidate, Space, front, space_of, survivors
from deepcache.search.recorder import listening
from deepcache.search.trials import Trials
from deepcache.search.tuned import Budget, Estimate, Tuned, estimate

pytestmark = pytest.mark.xdist_group("tuner")  # what most of them tune is tuned once

STEPS = 8
OTHERS = range(16)  # seeds that nothing is tuned on
SEEDS = range(5_000, 5_012)
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def pipe():
    found = models.load("mini-ldm")
    found.scheduler = scheduler("ddim", found.scheduler.config)
    return found


@pytest.fixture(scope="module", autouse=True)
def small_search():
    """Few shares are searched, and the costs of a pipeline's steps, the same for any number of calls, found once."""
    known = cache(lambda pipe: explain(pipe, 1, STEPS))
    with (
        patch("deepcache.search.candidates.explain", lambda pipe, *_: known(pipe)),
        patch("deepcache.search.tuner._SHARES", (0.5, 0.32)),
        patch("deepcache.search.tuner._AROUND", (1.0, 0.8)),
    ):
        yield


@pytest.fixture
def space() -> Space:
    own = Sampling(None, 10)
    return Space(100, {0: 10, 1: 30}, own, own_calls=10, calls={own: 10}, branches=(0, 1), orders=(0, 1))


def workload_of(pipe) -> Workload:
    return Workload(pipe, conditions_of(pipe), 2)


def tuned(pipe, **changes):
    options = {"num_steps": STEPS, "branches": [0], "orders": [0, 1], "seeds": SEEDS, "batch_size": 16}
    return deepcache.tune(pipe, **{**options, "progress": False, "guidance_scale": 1.5, **changes})


def psnrs(pipe, plan, num_steps: int, seeds) -> list[float]:
    options = {"batch_size": len(seeds), "num_inference_steps": num_steps, "guidance_scale": 1.5, "progress": False}
    uncached = sample(pipe, seeds, **options)
    with cached(pipe, plan):
        return psnr_each(sample(pipe, seeds, **options), uncached)


def test_the_cheapest_plan_keeps_its_budget_on_other_seeds(pipe):
    """The promise is of the median over any seeds; on `OTHERS` within their own interval."""
    found = tuned(pipe, psnr_db=20, orders=[1])
    others = estimate("psnr_db", np.array(psnrs(pipe, found.plan, STEPS, OTHERS)))
    assert found.promise.low >= 20
    assert others.value >= 20
    assert found.promise.low <= others.high
    assert others.low <= found.promise.high
    assert found.speedup > 1.3


@pytest.fixture(scope="module")
def twice_as_fast(pipe) -> Tuned:
    return tuned(pipe, speedup=2)


def test_a_speedup_is_kept_exactly_and_the_samples_are_the_nearest_tried(pipe, twice_as_fast):
    found = twice_as_fast
    cost = architecture("mini-ldm").cost()
    assert found.speedup == pytest.approx(cost.ratio(found.plan), rel=1e-12)
    assert found.speedup >= 2
    within = [t for t in found.trials if found.space.speedup(t.candidate) >= 2 and not t.is_checked]
    assert all(len(found.search_seeds) == t.num_seeds for t in within)
    nearest = sorted((t.estimates["psnr_db"].value for t in within), reverse=True)
    again = estimate("psnr_db", np.array(psnrs(pipe, found.plan, STEPS, found.search_seeds)))
    assert again.value >= nearest[1] - 0.5  # among the three that were nearest on the search's seeds
    assert not set(found.search_seeds) & set(found.check_seeds)
    assert found.chosen.num_seeds == len(found.check_seeds)
    told = json.loads(json.dumps(found.for_machines()))
    assert deepcache.CachePlan(**told["plan"]) == found.plan
    assert told["psnr_db"]["low"] == found.promise.low


def test_seeds_of_the_search_do_not_decide_the_promise(pipe, twice_as_fast):
    """The promise is the estimate of the check's seeds, which are sampled here again."""
    again = estimate("psnr_db", np.array(psnrs(pipe, twice_as_fast.plan, STEPS, twice_as_fast.check_seeds)))
    assert twice_as_fast.promise.value == pytest.approx(again.value, abs=0.5)


def test_the_search_leaves_the_pipeline_as_it_was(pipe, monkeypatch):
    monkeypatch.setattr("deepcache.search.tuner._CONVERGED", Sampling("ddim", 4))
    own, forward = pipe.scheduler, pipe.unet.forward
    found = tuned(pipe, speedup=2, num_steps=3, solvers=["dpm-solver++"], orders=[0])
    assert {solver.scheduler for solver in found.space.calls} == {None, "dpm-solver++"}
    assert found.plan.num_steps <= 3
    assert pipe.scheduler is own
    assert pipe.unet.forward == forward


def test_a_speedup_that_nothing_reaches_names_the_nearest(pipe):
    with pytest.raises(DeepCacheError, match=r"speedup of 50; the nearest is [45]\.\d\d.*branch 0") as error:
        tuned(pipe, speedup=50)
    assert "\n" not in str(error.value)


def test_a_fidelity_that_nothing_keeps_names_the_nearest(pipe):
    with pytest.raises(
        DeepCacheError, match=r"no plan keeps psnr_db to 79 .* the nearest, branch 0, .* promises \d"
    ) as e:
        tuned(pipe, psnr_db=79, num_steps=3, orders=[0])
    assert "\n" not in str(e.value)


def test_orders_that_leave_no_plan_are_one_line(pipe):
    """Order 2 needs three full steps, which are all steps, or more than the speedup leaves."""
    with pytest.raises(DeepCacheError, match="no plan of orders 2 fits 3 steps"):
        tuned(pipe, psnr_db=30, num_steps=3, orders=[2])
    with pytest.raises(DeepCacheError, match=r"speedup of 3\.5; the nearest is [23]\.\d\d.* full steps as order 1"):
        tuned(pipe, speedup=3.5, orders=[1, 2])


def test_noise_of_the_solver_is_the_calibrations_too(pipe):
    """With eta, each step draws from the seed's generator, and listening to the solver changes no sample."""
    options = {"num_inference_steps": 6, "guidance_scale": 1.5, "eta": 1.0}
    seeds = range(2)
    plain = sample(pipe, seeds, batch_size=2, progress=False, **options)
    assert not torch.equal(plain, sample(pipe, seeds, batch_size=2, progress=False, **{**options, "eta": 0.0}))
    heard = []
    with listening(pipe.scheduler, lambda _, latents: heard.append(latents)):
        assert torch.equal(sample(pipe, seeds, batch_size=2, progress=False, **options), plain)
    assert len(heard) == 6


def test_mini_extractors_are_refused_for_images_they_do_not_know(pipe, monkeypatch):
    monkeypatch.setattr("deepcache.search.tuner.SIZE", (64, 64))
    with pytest.raises(DeepCacheError, match=r"images of 64 x 64 by .*got 32 x 32 by a .*; pass distance="):
        tuned(pipe, perceptual=0.1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "expected one budget"),
        ({"speedup": 2, "psnr_db": 30}, "got speedup, psnr_db"),
        ({"speedup": 1}, "above 1"),
        ({"speedup": float("nan")}, "above 1"),
        ({"clip_loss": 1}, "with prompts"),
        ({"speedup": 2, "seeds": range(5)}, "at least 12 different seeds"),
        ({"speedup": 2, "branches": [99]}, "branches out of -1..8"),
        ({"speedup": 2, "orders": [3]}, "order"),
        ({"speedup": 2, "solvers": ["magic"]}, "expected schedulers out of"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(pipe, changes, told):
    with pytest.raises(DeepCacheError, match=told):
        tuned(pipe, **changes)


@pytest.mark.parametrize("name", ["ddim", "plms", "dpm-solver++"])
def test_the_pipelines_own_solver_is_tried_once(pipe, monkeypatch, name):
    """Named, it takes the place of the pipeline's own; another one of its class does not."""
    monkeypatch.setattr(pipe, "scheduler", scheduler(name, pipe.scheduler.config))
    options = {"branches": [0], "orders": [1]}
    named = space_of(workload_of(pipe), 40, solvers=[name], **options).calls  # the fewest steps suffice for PNDM
    assert None not in [solver.scheduler for solver in named]
    other = "pndm" if name == "plms" else "heun"
    others = space_of(workload_of(pipe), 40, solvers=[other], **options).calls
    assert None in [solver.scheduler for solver in others]


def test_costs_are_those_of_the_cost_model(pipe):
    space = space_of(workload_of(pipe), STEPS, branches=[0, 2], orders=[0, 1, 2], solvers=None)
    cost = architecture("mini-ldm").cost()
    for candidate in space.candidates([0.8, 0.5, 0.3], lambda *_: None):
        assert candidate.macs == cost.mean(candidate.plan, EVERYTHING) * STEPS


def test_a_candidate_is_the_dearest_of_its_kind_within_its_share(space):
    for share in (0.3, 0.5, 0.7):
        for candidate in space.candidates([share], lambda *_: None):
            assert candidate.macs <= share * space.whole
            if candidate.kind == "uniform" and candidate.plan.full_steps[-1] < 9:
                interval = candidate.plan.full_steps[1]
                denser = uniform(10, interval - 1, candidate.plan.branch)
                shallow = space.shallow[denser.branch]
                assert 10 * shallow + denser.num_full * (100 - shallow) > share * space.whole


def test_a_branch_at_which_shallow_steps_save_nothing_gives_no_plan(space):
    found = replace(space, shallow={0: 10, 1: 100}).candidates([0.5], lambda *_: None)
    assert {candidate.plan.branch for candidate in found} == {0}


def test_optimal_plans_are_asked_for_what_the_share_leaves(space):
    asked = []

    def optimal(_, branch, order, num_full):
        asked.append((branch, order, num_full))
        return uniform(10, 10 // num_full, branch, order)

    space.candidates([0.5], optimal)
    assert asked == [(0, 0, 4), (0, 1, 4), (1, 0, 2), (1, 1, 2)]


@pytest.fixture
def idle_space() -> Space:
    own = Sampling(None, 20)
    return Space(
        100, {-1: 0, 0: 10, 1: 30}, own, own_calls=20, calls={own: 20}, branches=(-1, 0, 1), orders=("auto", 1)
    )


def test_mixed_plans_are_the_dearest_even_ones_within_the_share(idle_space):
    found = [c for c in idle_space.candidates([0.5, 0.25], lambda *_: None) if c.plan.idle_steps]
    assert {(c.plan.order, c.plan.branch) for c in found} == {("auto", 0), (1, 0)}
    for candidate in found:
        plan, interval = candidate.plan, candidate.plan.full_steps[1]
        assert plan.num_shallow
        assert plan.is_full(19)
        assert candidate.macs == 100 * plan.num_full + 10 * plan.num_shallow
        every = next(step for step in range(1, interval) if not plan.is_idle(step))
        assert plan == uniform(20, interval, 0, plan.order, last_step_full=True, shallow_every=every)
        share = 0.5 if candidate.macs > 0.25 * idle_space.whole else 0.25
        assert candidate.macs <= share * idle_space.whole
        denser = uniform(20, interval - 1, 0, last_step_full=True, shallow_every=every)
        assert interval == every + 1 or 100 * denser.num_full + 10 * denser.num_shallow > share * idle_space.whole


@pytest.mark.parametrize("branches", [(-1,), (0, 1)])
def test_without_idle_or_without_shallow_steps_nothing_is_mixed(idle_space, branches):
    found = replace(idle_space, branches=branches).candidates([0.5, 0.25], lambda *_: None)
    assert found
    assert not any(candidate.plan.idle_steps for candidate in found)


def test_a_candidate_says_in_words_what_runs_between_full_steps():
    own = Sampling(None, 20)
    told = {
        "no stage runs, order auto, N=5 (4 full)": uniform(20, 5, -1),
        "branch 1, order 2, N=5, last step full (5 full)": uniform(20, 5, 1, 2, last_step_full=True),
        "branch 0 at 8 steps, no stage runs at 8, order 1, N=5 (4 full)": uniform(20, 5, 0, 1, shallow_every=2),
    }
    for text, plan in told.items():
        assert str(Candidate(replace(own, plan=plan), "uniform", 0)) == text
    searched = Candidate(replace(own, plan=CachePlan(20, (0, 3, 9), -1, 0)), "searched", 0)
    assert str(searched) == "no stage runs, order 0, searched (3 full)"


def test_cheap_idle_plans_are_moved_where_images_come_nearer(idle_space, monkeypatch):
    """A made-up fidelity that falls with the full steps' distance from some places; only cheap shares are searched."""
    space, asked = idle_space, set()
    budget, places = Budget("psnr_db", 30), (0, 2, 4, 9, 12, 19)
    trials = Trials(budget, space, None, space.own, range(12), range(12, 36), tqdm(disable=True))

    def values(candidate, seeds):
        asked.update((candidate.kind, seed) for seed in seeds)
        near = [min(abs(place - step) for step in candidate.plan.full_steps) for place in places]
        return {"psnr_db": np.full(len(seeds), 40.0 - sum(near))}

    monkeypatch.setattr(trials, "values", values)
    candidates = space.candidates([0.6, 0.3], lambda *_: None)
    (found,) = trials.searched(candidates, [0.6, 0.3])
    idle = [c for c in candidates if c.plan.branch == -1 and c.macs <= 0.3 * space.whole]
    assert values(found, range(6))["psnr_db"][0] > max(values(c, range(6))["psnr_db"][0] for c in idle)
    assert found.kind == "searched"
    assert found.macs == 100 * found.plan.num_full <= 0.3 * space.whole
    assert {seed for kind, seed in asked if kind == "searched"} == {*range(6)}
    assert not trials.searched(candidates, [0.6])
    assert found.sampling not in [c.sampling for c in candidates]
    assert not trials.searched([*candidates, found], [0.3])


def test_halving_keeps_what_nothing_cheaper_beats():
    """A made-up score that grows with the cost, but for half of the candidates, which are worse (an exact law)."""
    candidates = [
        Candidate(Sampling(None, 10, uniform(10, interval, branch)), "uniform", interval * 100 + branch)
        for interval in (1, 2, 3, 4)
        for branch in (0, 1)
    ]
    truth = {c: c.macs - 1000.0 * c.plan.branch for c in candidates}
    asked = []

    def score(candidate, count):
        asked.append(count)
        return truth[candidate]

    left = survivors(candidates, score, (1, 2))
    assert left == [c for c in candidates if c.plan.branch == 0]
    assert asked == [1] * 8 + [2] * 4
    assert front(truth) == left


def test_of_candidates_that_make_the_same_images_the_first_is_left():
    """Order "auto" is order 1 here: one cost and one score, so that the twin takes no other candidate's place."""
    twins = [Candidate(Sampling(None, 10, uniform(10, 3, -1, order)), "uniform", 400) for order in ("auto", 1)]
    worse = Candidate(Sampling(None, 10, uniform(10, 3, -1, 0)), "uniform", 400)
    truth = {twins[0]: 40.0, twins[1]: 40.0, worse: 30.0}
    assert survivors([*twins, worse], lambda candidate, _: truth[candidate], (1,)) == [twins[0], worse]
    assert survivors([*twins, worse], lambda candidate, _: truth[candidate], (1, 2)) == [twins[0]]


def test_deeper_branches_are_not_calibrated(idle_space):
    """Branch 1 is the third: nothing is sampled for it, so that a workload is not needed."""
    trials = Trials(Budget("psnr_db", 30), idle_space, None, idle_space.own, range(12), range(36), tqdm(disable=True))
    assert trials.optimal(idle_space.own, 1, 1, 5) is None
    with pytest.raises(AttributeError):
        trials.optimal(idle_space.own, 0, 1, 5)


def test_an_interval_holds_the_value_and_narrows_with_seeds():
    values = np.random.default_rng(1).normal(30, 3, 400)
    few, many = estimate("psnr_db", values[:20]), estimate("psnr_db", values)
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 2
    assert many.low < 30 < many.high


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """200 medians of 24 seeds: the coverage is 0.95, less four standard errors and the bootstrap's own bias."""
    draws = np.random.default_rng(2).gumbel(30, 3, (200, 24))
    truth = 30 - 3 * np.log(np.log(2))
    found = [estimate("psnr_db", draw) for draw in draws]
    assert np.mean([one.low <= truth <= one.high for one in found]) > 0.87


def test_the_worse_end_decides():
    decibels, distance = Budget("psnr_db", 30), Budget("perceptual", 0.1)
    assert decibels.holds(decibels.worse_end(Estimate(35, 30, 40)))
    assert not decibels.holds(decibels.worse_end(Estimate(35, 29, 40)))
    assert not distance.holds(distance.worse_end(Estimate(0.05, 0.01, 0.11)))


def test_every_measure_is_zero_or_at_its_cap_without_a_cache():
    from deepcache.metrics.clip_score import load_clip
    from deepcache.metrics.perceptual import load_perceptual

    pipe = models.load("mini-sd")
    own, bar = Sampling(None, 4), tqdm(file=io.StringIO())
    space = Space(100, {0: 10}, own, own_calls=5, calls={own: 5}, branches=(0,), orders=(0,))
    extractors = (load_perceptual(), load_clip())
    trials = Trials(Budget("psnr_db", 30), space, workload_of(pipe), own, range(2), range(2, 3), bar, *extractors)
    uncached = Candidate(Sampling(None, 4, uniform(5, 1)), "uncached", 0)
    values = trials.values(uncached, range(2))
    assert values["psnr_db"].tolist() == [80, 80]
    assert values["perceptual"].tolist() == [0, 0]
    assert values["clip_loss"].tolist() == [0, 0]
    assert bar.n == 2
    trials.values(uncached, range(3))
    assert bar.n == 3


def test_the_command_writes_a_plan_that_sample_takes(capsys, tmp_path):
    file = tmp_path / "plan.json"
    options = ["--num-steps", "3", "--branches", "0", "--orders", "0", "--num-seeds", "12"]
    command = ["tune", "--model", "mini-ldm", "--speedup", "2", *options]
    assert main([*command, "--out", str(tmp_path / "none" / "plan.json")]) == 2
    assert "is not there; make it first" in capsys.readouterr().err
    assert main([*command, "--out", str(file)]) == 0
    out = capsys.readouterr().out
    plan = deepcache.CachePlan.load(file)
    assert plan.num_steps == 3
    assert json.loads(file.read_text())["full_steps"] == list(plan.full_steps)
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    line = next(line for line in out.splitlines() if line.startswith("python -m deepcache sample"))
    arguments = line.split()[3:-4]
    assert main([*arguments, "--seeds", "0:2", "--out", str(tmp_path / "store")]) == 0


def test_a_plan_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(DeepCacheError, match="cannot be read"):
        deepcache.CachePlan.load(tmp_path / "none.json")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A prompted model with embedded weights that is loaded from elsewhere, so that it is no embedded model."""
    folder = tmp_path_factory.mktemp("foreign") / "model"
    shutil.copytree(WEIGHTS / "mini-sd", folder)
    found = models.load(folder)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.mark.parametrize("name", ["tune", "calibrate", "sample"])
def test_a_model_that_is_not_embedded_is_not_asked_for_garments(foreign, name):
    acts = {
        "tune": lambda: deepcache.tune(foreign, psnr_db=40, num_steps=4),
        "calibrate": lambda: deepcache.calibrate(foreign, num_inference_steps=4),
        "sample": lambda: sample(foreign, range(2), batch_size=2, num_inference_steps=4),
    }
    ran = []
    with (
        foreign.unet.conv_in.register_forward_hook(lambda *_: ran.append(1)),
        pytest.raises(DeepCacheError, match=r"expected prompts for StableDiffusionPipeline.*prompts=\[") as caught,
    ):
        acts[name]()
    assert "\n" not in str(caught.value)
    assert not ran


@pytest.mark.parametrize("name", ["tune", "calibrate"])
def test_prompts_are_what_the_samples_show(foreign, name):
    """Seed i takes prompt i, modulo their number; oracle: the pipeline's own calls."""
    prompts, asked = ["a red coat", "a blue bag", "a green dress"], set()

    def note(_, args, kwargs):
        asked.update(map(tuple, (kwargs.get("input_ids", args[0] if args else None)).tolist()))

    with foreign.text_encoder.register_forward_pre_hook(note, with_kwargs=True):
        if name == "tune":
            found = deepcache.tune(
                foreign, speedup=1.1, num_steps=2, branches=(0,), orders=(0,), seeds=range(12), prompts=prompts, **QUIET
            )
            assert found.plan.num_steps == 3  # PNDM's
        else:
            deepcache.calibrate(foreign, seeds=range(3), num_inference_steps=2, prompts=prompts, **QUIET)
    tokens = foreign.tokenizer([*prompts, ""], padding="max_length", max_length=foreign.tokenizer.model_max_length)
    assert asked <= set(map(tuple, tokens.input_ids))
    assert len(asked) >= 3


def test_mini_extractors_are_not_taken_for_other_models_images(foreign):
    for budget in ({"perceptual": 0.1}, {"clip_loss": 1}):
        with pytest.raises(DeepCacheError, match=r"by an embedded model for mini-.*StableDiffusionPipeline; pass"):
            deepcache.tune(foreign, num_steps=4, prompts=["a"], **budget)


def test_clip_loss_needs_to_know_the_prompts(foreign):
    with pytest.raises(DeepCacheError, match="with prompts for clip_loss"):
        deepcache.tune(
            foreign, clip_loss=1, num_steps=4, conditions=lambda seeds: {"num_images_per_prompt": len(seeds)}
        )


def test_the_command_takes_prompts_for_a_model_that_is_not_embedded(capsys, tmp_path, monkeypatch, twice_as_fast):
    """Without prompts nothing is tuned; `tune` itself, which another test runs, is not run here."""
    asked = {}
    monkeypatch.setattr("deepcache.search.tuner.tune", lambda _, **options: asked.update(options) or twice_as_fast)
    shutil.copytree(WEIGHTS / "mini-sd", tmp_path / "model")
    command = [
        "tune",
        "--model",
        str(tmp_path / "model"),
        "--speedup",
        "1.1",
        "--scheduler",
        "ddim",
        "--num-steps",
        "4",
    ]
    command += ["--guidance-scale", "1", "--branches", "0", "--orders", "0", "--num-seeds", "12"]
    command += ["--out", str(tmp_path / "plan.json")]
    assert main(command) == 2
    assert "--prompts FILE" in capsys.readouterr().err
    assert not asked
    (tmp_path / "prompts.txt").write_text("a red coat\na blue bag\n")
    assert main([*command, "--prompts", str(tmp_path / "prompts.txt")]) == 0
    assert asked["conditions"](range(3)) == {"prompt": ["a red coat", "a blue bag", "a red coat"]}
    assert (asked["num_steps"], asked["guidance_scale"], asked["seeds"]) == (4, 1, range(1_000_000, 1_000_012))
    assert f"--prompts {tmp_path / 'prompts.txt'}" in capsys.readouterr().out


def test_uncached_images_of_a_pipeline_that_is_cached_already_are_refused(pipe):
    cache = cached(pipe, interval=5)
    with cache, pytest.raises(DeepCacheError, match="expected a pipeline without a cache"):
        tuned(pipe, psnr_db=20)
    cache = cached(pipe, interval=5)
    cache.enable()
    try:
        with pytest.raises(DeepCacheError, match="disable the cache"):
            tuned(pipe, psnr_db=20)
    finally:
        cache.disable()

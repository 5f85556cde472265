"""Fixtures of the benches: workloads by part, references, `measure`, and the options as parameters.

What is slow to import is imported where it is used: what is missing at paper scale is said before.
"""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.harness import requirements
from bench.harness.needs import NAMED_ALONE
from bench.harness.scales import SCALES, device_of, scale_of
from deepcache.errors import DeepCacheError
from deepcache.sampling.limits import END_OF_SEEDS, MOST_A_BATCH, MOST_SAMPLES, whole

if TYPE_CHECKING:
    from bench.harness.measure import Measure
    from bench.harness.workload import Workload

MOST_ROUNDS = 10_000
MOST_BRANCHES = 1_000
FIRST_SEED = whole(at_least=0, at_most=END_OF_SEEDS - MOST_SAMPLES)  # of a block of at most as many
DTYPES = ("fp32", "fp16", "bf16")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deepcache benches")
    add = group.addoption
    add("--scale", choices=list(SCALES), default="mini", help="embedded models, or the paper's (default mini)")
    add("--weights", choices=["trained", "random"], default="trained", help="random: speed and MACs alone")
    add("--device", help="where models run: cpu, cuda:1, ... (default: cpu; at paper scale cuda where there is one)")
    add("--dtype", choices=DTYPES, help="of the models (default: fp32; fp16 for prompted ones of the paper on a GPU)")
    add(
        "--num-samples",
        type=whole(at_least=2, at_most=MOST_SAMPLES),
        help="samples a row, for fidelity (default: the protocol; one of each prompt)",
    )
    add("--num-steps", type=_num_steps, help="sampling steps of the uncached run (default: the model's protocol)")
    add(
        "--batch-size",
        type=_batch_size,
        help="images sampled together (default: auto, the protocol's, halved if need be)",
    )
    add(
        "--rounds",
        type=whole(at_most=MOST_ROUNDS),
        default=2,
        help="timed rounds a row, cached and uncached (default 2)",
    )
    add(
        "--branches",
        type=_list(whole(at_least=0, at_most=MOST_BRANCHES)),
        default=[0],
        help="branches of Table 1, e.g. 0,1,2 (default 0)",
    )
    add("--schedulers", type=_list(_scheduler), default=["ddim"], help="of Table 1, e.g. ddim,plms (default ddim)")
    add("--seeds", type=_list(FIRST_SEED), default=[0], help="first seed of each block of samples (default 0)")
    add("--prompts", type=Path, metavar="FILE", help="prompts of the workflows and of prompted models at paper scale")
    add("--images-dir", type=Path, metavar="DIR", help="where the workflows' images go (default: nowhere)")
    add("--all", action="store_true", help="with the benches that else run where they are named alone")
    add("--store", type=Path, metavar="DIR", help="sample stores, one a run, read and filled (paper scale: samples)")


def pytest_configure(config: pytest.Config) -> None:
    """Say what is missing; share the machine among workers: a GPU each where there are several, and the cores."""
    config.addinivalue_line("markers", "shows_images: skipped with --weights random, whose images are noise")
    if config.getoption("scale") == "paper" and config.getoption("weights") == "trained":
        page = requirements.page(config)
        if page:
            pytest.exit(page, returncode=2)
    _require_places(config)
    worker = getattr(config, "workerinput", None)
    if worker is None:
        return
    import torch

    number, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    if len(visible) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]


def _require_places(config: pytest.Config) -> None:
    """What the last bench reads and writes is looked at before the first one."""
    prompts, folder = (config.getoption(name) for name in ("prompts", "images_dir"))
    try:
        if prompts is not None:
            from deepcache.sampling.prompt_files import prompts_in

            prompts_in(prompts)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except DeepCacheError as error:
        raise pytest.UsageError(f"--prompts: {error}") from error
    except OSError as error:
        raise pytest.UsageError(f"--images-dir: cannot write to {folder}: {error}") from error


def pytest_report_header(config: pytest.Config) -> str:
    return f"deepcache: {config.getoption('scale')} scale, models on {device_of(config)}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Some take as long as all others together; pytest does not ask for files that are named."""
    return True if collection_path.stem in NAMED_ALONE and not config.getoption("all") else None


def _num_steps(text: str) -> int:
    from deepcache.plan import MOST_STEPS

    return whole(at_least=2, at_most=MOST_STEPS)(text)


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else whole(at_most=MOST_A_BATCH)(text)


def _list(parse: Callable[[str], object]) -> Callable[[str], list[object]]:
    return lambda text: [parse(word.strip()) for word in text.split(",")]


def _scheduler(text: str) -> str:
    from deepcache.sampling.schedulers import SCHEDULERS

    if text not in SCHEDULERS:
        raise ArgumentTypeError(f"expected schedulers out of {', '.join(SCHEDULERS)}, got {text!r}")
    return text


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, option in (("branch", "branches"), ("scheduler", "schedulers"), ("first_seed", "seeds")):
        if name in metafunc.fixturenames:
            values = metafunc.config.getoption(option)
            metafunc.parametrize(name, values, scope="session", ids=lambda value, name=name: f"{name}={value}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """What a user can mend is one line, too, where it comes up in the middle of a bench."""
    try:
        return (yield)
    except DeepCacheError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.fixture(autouse=True)
def progress_is_seen(pytestconfig: pytest.Config) -> Iterator[None]:
    """Progress bars reach the terminal, which pytest would capture."""
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        yield


@pytest.fixture(autouse=True)
def images_mean_something(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> None:
    """Nothing computed from noise is shown as fidelity."""
    if pytestconfig.getoption("weights") == "random" and request.node.get_closest_marker("shows_images"):
        pytest.skip("shows images, which random weights make noise")


@pytest.fixture(scope="session")
def workload(pytestconfig: pytest.Config) -> Callable[[str], Workload]:
    """`workload("prompted")`: by part or by name, loaded once a session, as its protocol and the options say."""
    from bench.harness.loading import load_workload

    scale = scale_of(pytestconfig)

    @cache
    def load(model: str) -> Workload:
        with _told():
            return load_workload(model, pytestconfig)

    return lambda name: load(getattr(scale, name, name))


@pytest.fixture(scope="session")
def class_conditional(workload: Callable[[str], Workload], pytestconfig: pytest.Config) -> Workload:
    """LDM-4-G or its stand-in."""
    from deepcache.unets.family import require_branch

    found = workload("class_conditional")
    with _told():
        for branch in pytestconfig.getoption("branches"):
            require_branch(branch, found.cost.num_branches)
    return found


@pytest.fixture(scope="session")
def prompted(workload: Callable[[str], Workload]) -> Workload:
    """Stable Diffusion or its stand-in."""
    return workload("prompted")


@pytest.fixture(scope="session")
def reference(pytestconfig: pytest.Config) -> Callable[[str], Any]:
    """`reference(model)`: statistics of the real images that a model was trained on."""
    from bench.harness.loading import load_reference

    @cache
    def load(model: str) -> Any:
        with _told():
            return load_reference(model, pytestconfig)

    return load


@pytest.fixture
def measure(
    benchmark: Any, record: Callable[..., None], reference: Callable[[str], Any], pytestconfig: pytest.Config
) -> Measure:
    """Samples a row and its uncached counterpart, times both, keeps the record."""
    from bench.harness.measure import Measure

    return Measure(benchmark, record, reference, pytestconfig.getoption("rounds"))


@contextmanager
def _told() -> Iterator[None]:
    """A user's mistake ends the session with its one line."""
    try:
        yield
    except DeepCacheError as error:
        pytest.exit(str(error), returncode=2)

"""This file gives the experiments their options and fixtures: workloads, references, `measure` and `judge`."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.harness import requirements
from bench.harness.requirements import Needs
from bench.harness.scales import SCALES, device_of, scale_of
from deepcache.errors import DeepCacheError
from deepcache.sampling.seeds import END_OF_SEEDS, MOST_A_BATCH, MOST_SAMPLES, whole

if TYPE_CHECKING:
    from bench.harness.laws import Judge
    from bench.harness.measure import Measure
    from bench.harness.workload import Workload

MOST_ROUNDS = 10_000
MOST_BRANCHES = 1_000
FIRST_SEED = whole(at_least=0, at_most=END_OF_SEEDS - MOST_SAMPLES)  # the last block must end where seeds end
NOT_JUDGED = "not judged"  # the outcome of a test that recorded a row to which no threshold applies
_MISSING = "deepcache_missing"  # of a worker's output: the page of what is missing
_PAGE = pytest.StashKey[str]()  # of xdist's controller: the same
_NEEDS = pytest.StashKey[Needs]()  # of the session: what the experiment that runs now needs
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
    add("--all", action="store_true", help="run also the experiments that otherwise run only if their file is named")
    add("--store", type=Path, metavar="DIR", help="sample stores, one a run, read and filled (paper scale: samples)")


def pytest_configure(config: pytest.Config) -> None:
    """Share the machine among workers: every worker gets its share of the cores, and a GPU where there are several."""
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
    """Look at what the last experiment reads and writes before the first experiment runs."""
    prompts, folder = (config.getoption(name) for name in ("prompts", "images_dir"))
    try:
        if prompts is not None:
            from deepcache.sampling.conditions import prompts_in

            prompts_in(prompts)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except DeepCacheError as error:
        raise pytest.UsageError(f"--prompts: {error}") from error
    except OSError as error:
        raise pytest.UsageError(f"--images-dir: cannot write to {folder}: {error}") from error


def pytest_report_header(config: pytest.Config) -> str:
    return f"deepcache: {config.getoption('scale')} scale, models on {device_of(config)}"


@pytest.hookimpl(trylast=True)  # after pytest's own selection by -k and -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what runs only by name; at the paper's scale, say on one page what the selected experiments lack."""
    if not config.getoption("all"):
        named = {Path(config.invocation_params.dir, str(each).split("::")[0]).resolve() for each in config.args}
        left_out = [
            each for each in items if each.get_closest_marker("named_alone") and each.path.resolve() not in named
        ]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    asked = {item.path: _needs_of(item) for item in items}
    if config.getoption("scale") == "paper" and config.getoption("weights") == "trained":
        page = requirements.page([*asked.values()], config)
        if page and hasattr(config, "workeroutput"):  # an exit would make xdist start another worker
            config.workeroutput[_MISSING] = page
            items.clear()
        elif page:
            pytest.exit(page, returncode=2)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over from xdist's workers what is missing."""
    page = getattr(node, "workeroutput", {}).get(_MISSING)
    if page:
        node.config.stash[_PAGE] = page


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _PAGE in session.config.stash:
        session.exitstatus = 2


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if _PAGE in config.stash:
        terminalreporter.write_line(config.stash[_PAGE])


def _needs_of(item: Any) -> Needs:
    found = getattr(item.module, "NEEDS", None)
    if not isinstance(found, Needs):
        raise pytest.UsageError(f"expected NEEDS = Needs(...) in {item.path}; say what the experiment needs")
    return found


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
            metafunc.parametrize(name, values, scope="session", ids=f"{name}={{}}".format)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Remember what the running experiment said that it needs; a workload that it did not name is refused."""
    item.config.stash[_NEEDS] = _needs_of(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Report a user's mistake in one line also where it comes up in the middle of an experiment."""
    try:
        return (yield)
    except DeepCacheError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: pytest.CallInfo[None]) -> Generator[None, Any, pytest.TestReport]:
    """Mark the report of a test that asked for `judge` and to which no threshold applied."""
    report: pytest.TestReport = yield
    judge = getattr(item, "funcargs", {}).get("judge")
    if call.when == "call" and report.passed and judge is not None and not judge.has_judged:
        report.user_properties.append((NOT_JUDGED, "recorded; no threshold applies to it"))
    return report


def pytest_report_teststatus(report: Any) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Count and print such a test as not judged, and not as passed."""
    if report.when == "call" and report.passed and any(name == NOT_JUDGED for name, _ in report.user_properties):
        return NOT_JUDGED, "n", ("NOT JUDGED", {"yellow": True})
    return None


@pytest.fixture
def judge() -> Judge:
    """Say whether the thresholds of a row apply: `if judge(workload): assert ...`.

    A test that asks for `judge` and to which no threshold applied ends as "not judged".
    """
    from bench.harness.laws import Judge

    return Judge()


@pytest.fixture(autouse=True)
def progress_is_seen(pytestconfig: pytest.Config) -> Iterator[None]:
    """Let progress bars reach the terminal, which pytest would capture."""
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        yield


@pytest.fixture(autouse=True)
def images_mean_something(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> None:
    """Skip a test that shows images where random weights make them noise."""
    if pytestconfig.getoption("weights") == "random" and request.node.get_closest_marker("shows_images"):
        pytest.skip("shows images, which random weights make noise")


@pytest.fixture(scope="session")
def workload(pytestconfig: pytest.Config) -> Callable[[str], Workload]:
    """Return `workload("prompted")`, which loads a model by its part or name, once a session.

    The model is sampled as its protocol and the options say.
    """
    from bench.harness.loading import load_workload

    scale = scale_of(pytestconfig)

    @cache
    def load(model: str) -> Workload:
        with _told():
            return load_workload(model, pytestconfig)

    def find(name: str) -> Workload:
        model = getattr(scale, name, name)
        declared = pytestconfig.stash[_NEEDS]
        if model not in declared.models(scale):
            raise LookupError(
                f"expected {model} among the models of NEEDS, got the parts {declared.parts}; add its part"
            )
        return load(model)

    return find


@pytest.fixture(scope="session")
def class_conditional(workload: Callable[[str], Workload], pytestconfig: pytest.Config) -> Workload:
    """Return LDM-4-G, or the embedded model in its place."""
    from deepcache.unets.family import require_branch

    found = workload("class_conditional")
    with _told():
        for branch in pytestconfig.getoption("branches"):
            require_branch(branch, found.cost.num_branches)
    return found


@pytest.fixture(scope="session")
def prompted(workload: Callable[[str], Workload]) -> Workload:
    """Return Stable Diffusion, or the embedded model in its place."""
    return workload("prompted")


@pytest.fixture(scope="session")
def reference(pytestconfig: pytest.Config) -> Callable[[str], Any]:
    """Return `reference(model)`, which loads the statistics of the real images that a model was trained on."""
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
    """Return what samples a row and its uncached counterpart, times both, and keeps the record."""
    from bench.harness.measure import Measure

    return Measure(benchmark, record, reference, pytestconfig.getoption("rounds"))


@contextmanager
def _told() -> Iterator[None]:
    """End the session with one line on a user's mistake."""
    try:
        yield
    except DeepCacheError as error:
        pytest.exit(str(error), returncode=2)

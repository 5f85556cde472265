"""Table 1 measures class-conditional generation: LDM-4-G on ImageNet in the paper, mini-ldm here.

The rows are uniform and quadratic plans at several intervals, predicted instead of reused features, and what a user
could do without a library: fewer steps at the same MACs.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import pytest

from bench.harness.columns import DRIFT, LDM, MEDIAN, NEAREST, PSNR, QUALITY, SPEED, of_the_paper
from bench.harness.laws import PSNR_FALLS_BY_AT_LEAST_DB, SAME_IMAGE_DB, Judge, macs_rule_time, skip_unless_judged
from bench.harness.measure import Found, Measure
from bench.harness.requirements import Needs
from bench.harness.workload import Run, Workload
from deepcache.metrics.fidelity import as_asked
from deepcache.plan import DEFAULT_ORDER, IDLE, Order
from deepcache.results.layout import Layout, Plot, Scalar
from deepcache.sampling.conditions import labels_of

NEEDS = Needs(("class_conditional",), real_images=True)
PAPER: dict[str, Scalar] = {"branch": 0, "solver": "ddim"}
TABLE = Layout(
    "table1",
    title="Table 1: class-conditional generation",
    look="Compare the course of FID and speedup down the column with the paper's, not the values.",
    columns=(*SPEED, *QUALITY, PSNR, MEDIAN, DRIFT),
    published=of_the_paper(
        "LDM-4-G, ImageNet 256, DDIM 250 steps, 50,000 samples, one RTX 2080; MACs without group norms",
        LDM,
        [
            ({"method": "uncached", **PAPER}, {"table": "Table 1", "method": "LDM-4*"}),
            *(
                (
                    {"method": "uniform", "interval": n, "order": 0, **PAPER},
                    {"table": "Table 1", "method": f"Uniform - N={n}"},
                )
                for n in (2, 3, 5, 10, 20)
            ),
            *(
                (
                    {"method": "quadratic", "interval": n, "order": 0, **PAPER},
                    {"table": "Table 1", "method": f"NonUniform - N={n}"},
                )
                for n in (10, 20)
            ),
        ],
    ),
    plot=Plot("speedup", "psnr_median_db", "speedup", NEAREST),
    number=1,
)
# A shallow step runs the same kernels as a full one, on its outermost stages. 0.85 of the MACs ratio leaves room for
# the scheduler, guidance and decoding, which caching does not shorten, and for a noisy machine.
SPEEDUP_OF_MACS_RATIO = 0.85
# The share of the uncached time that caching does not shorten. It limits idle rows, on whose steps no stage runs;
# at the MACs of shallow steps with N = 5, it asks for the same speedup as the rule above.
REST = 0.08
# MACs of mini-ldm's U-Net on one latent: a full step, and a shallow step at branch 0 (stored values, worked out when
# the model was made; `python -m deepcache macs --model mini-ldm --json`). A plan's mean is exact arithmetic on them.
FULL_MACS = 69_158_096
SHALLOW_MACS = 8_045_376
FID_DRIFT_GROWS_BY_AT_LEAST = 0.0  # for the same reason as PSNR falls


def samples_as_asked(num_samples: int) -> float:
    """Return the least share of guided samples that must be the garment asked for.

    The model must reach 0.85 of 1,000 samples (its card has the figure); with fewer samples, four standard errors of
    that share are allowed for.
    """
    return 0.85 - 4 * (0.85 * 0.15 / num_samples) ** 0.5


# The paper's centre and power over 250 steps (Tables 7 to 9); the centre scales with the number of steps.
QUADRATIC = {10: (110 / 250, 1.2), 20: (120 / 250, 1.2)}


@dataclass(frozen=True)
class Method:
    """A way to sample: "uncached", "uniform", "quadratic", or "fewer steps" at the MACs of a uniform interval."""

    kind: str
    interval: int = 1
    order: Order = 0

    def run(self, workload: Workload, uncached: Run, branch: int) -> Run:
        if self.kind == "uniform":
            return workload.every(
                self.interval, branch, self.order, scheduler=uncached.scheduler, num_steps=uncached.num_steps
            )
        if self.kind == "quadratic":
            return workload.around(
                *QUADRATIC[self.interval],
                self.interval,
                branch,
                scheduler=uncached.scheduler,
                num_steps=uncached.num_steps,
            )
        if self.kind == "fewer steps":
            return workload.fewer(uncached, Method("uniform", self.interval).run(workload, uncached, branch))
        return uncached

    def curve(self, branch: int) -> str:
        if branch == IDLE:
            return "idle"
        return f"order {self.order}" if self.kind == "uniform" else self.kind

    def label(self, run: Run, branch: int, scheduler: str, first_seed: int) -> str:
        name = {
            "uncached": "uncached",
            "uniform": f"uniform N={self.interval}",
            "quadratic": f"quadratic N={self.interval}",
            "fewer steps": f"{run.num_steps} steps (MACs of N={self.interval})",
        }[self.kind]
        extras = [f"order {self.order}"] * bool(self.order)
        extras += ["idle"] if branch == IDLE else [f"branch {branch}"] * bool(branch)
        extras += [scheduler] * (scheduler != "ddim") + [f"seeds from {first_seed}"] * bool(first_seed)
        return ", ".join([name, *extras])

    def __str__(self) -> str:
        order = f"-order{self.order}" if self.order else ""
        return self.kind.replace(" ", "-") + (f"-N{self.interval}" if self.interval > 1 else "") + order


UNIFORM = [Method("uniform", n) for n in (2, 3, 5, 10, 20)]
METHODS = [
    Method("uncached"),
    *UNIFORM,
    *(Method("uniform", n, order) for order in (1, 2) for n in (2, 3, 5, 10)),
    *(Method("quadratic", n) for n in QUADRATIC),
    *(Method("fewer steps", n) for n in (2, 3, 5, 10)),
]
IDLE_METHODS = [Method("uniform", n, DEFAULT_ORDER) for n in (3, 5)]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_table1(
    measure: Measure,
    class_conditional: Workload,
    method: Method,
    branch: int,
    scheduler: str,
    first_seed: int,
    judge: Judge,
) -> None:
    run, found = _row(measure, class_conditional, method, branch, scheduler, first_seed, judge)
    if run.plan is not None and branch == 0 and class_conditional.is_mini:  # exact at any number of steps
        share = Fraction(run.cache_plan.num_full, run.cache_plan.num_steps)
        assert found.metrics["macs"] == round(SHALLOW_MACS + (FULL_MACS - SHALLOW_MACS) * share)
        judge.has_judged = True
    if judge(class_conditional, when=method.kind == "uncached"):
        seeds = class_conditional.seeds(first_seed)
        asked = labels_of(seeds, found.samples.features.probabilities.shape[1])
        assert as_asked(found.samples.features, asked) >= samples_as_asked(len(seeds))
    if judge(class_conditional, when=method == Method("uniform", 2)):
        assert found.metrics["psnr_median_db"] >= SAME_IMAGE_DB


@pytest.mark.parametrize("method", IDLE_METHODS, ids=str)
def test_table1_idle(
    measure: Measure, class_conditional: Workload, method: Method, scheduler: str, first_seed: int, judge: Judge
) -> None:
    """The rows on whose steps nothing runs between full steps; they have no branch."""
    run, found = _row(measure, class_conditional, method, IDLE, scheduler, first_seed, judge)
    if class_conditional.is_mini:  # exact at any number of steps
        assert found.metrics["macs"] == round(Fraction(FULL_MACS * run.cache_plan.num_full, run.cache_plan.num_steps))
        judge.has_judged = True


def _row(
    measure: Measure,
    class_conditional: Workload,
    method: Method,
    branch: int,
    scheduler: str,
    first_seed: int,
    judge: Judge,
) -> tuple[Run, Found]:
    """Measure a row, and hold its speedup against its MACs."""
    uncached = class_conditional.uncached(scheduler=scheduler)
    run = method.run(class_conditional, uncached, branch)
    found = measure(
        TABLE,
        {
            "method": method.kind,
            "interval": method.interval,
            "order": method.order,
            "branch": branch,
            "solver": scheduler,
        },
        class_conditional,
        run,
        uncached,
        class_conditional.seeds(first_seed),
        label=method.label(run, branch, scheduler, first_seed),
        timed=method.kind != "fewer steps"
        and (method.order == 0 or method.interval == 5),  # an order costs the same at any N
        with_quality=True,
        settings={
            "curve": method.curve(branch),
            "interval": method.interval,
        },
    )

    if (
        run.plan is not None
        and found.timing is not None
        and macs_rule_time(class_conditional)
        and judge(class_conditional)
    ):
        speedup, ratio = found.timing.speedup, class_conditional.cost.ratio(run.cache_plan)
        least = (1 + REST) / (1 / ratio + REST) if branch == IDLE else SPEEDUP_OF_MACS_RATIO * ratio
        assert speedup >= least
    return run, found


@pytest.mark.shows_images
def test_table1_fidelity_falls_with_the_interval(
    class_conditional: Workload, branch: int, scheduler: str, first_seed: int
) -> None:
    seeds, uncached = class_conditional.seeds(first_seed), class_conditional.uncached(scheduler=scheduler)
    skip_unless_judged(class_conditional)
    base = class_conditional.samples(uncached, seeds)
    rows = [
        class_conditional.samples(each.run(class_conditional, uncached, branch), seeds, str(each)) for each in UNIFORM
    ]
    for nearer, farther in pairwise(Measure.change(samples, base) for samples in rows):
        assert nearer["psnr_median_db"] - farther["psnr_median_db"] > PSNR_FALLS_BY_AT_LEAST_DB
        assert farther["fid_drift"] - nearer["fid_drift"] > FID_DRIFT_GROWS_BY_AT_LEAST

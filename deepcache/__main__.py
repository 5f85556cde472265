"""`python -m deepcache`: MACs of a U-Net under a plan; what a plan can gain; tables from a results file; the gate."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from deepcache.errors import DeepCacheError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 2 and one line on stderr for a user's mistake, 1 if the gate fails."""
    options = _parser().parse_args(arguments)
    try:
        shown = options.run(options)
    except DeepCacheError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(shown)
    return int(getattr(shown, "failed", False))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m deepcache", description="Tools around deepcache.cached.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    macs = commands.add_parser("macs", help="multiply-accumulates of full and shallow steps, without weights")
    macs.add_argument("--model", required=True, help="a known name, a diffusers folder, or a config.json")
    macs.add_argument("--branch", type=int, help="the skips 0..BRANCH stay live; all branches if not given")
    macs.add_argument("--interval", type=int, help="N: mean over the steps of a uniform plan")
    macs.add_argument("--num-steps", type=int, default=50, help="U-Net calls of a generation (default 50)")
    macs.add_argument("--context-tokens", type=int, help="length of the prompt (default: the model's own, else 77)")
    macs.add_argument("--layer-wise", action="store_true", help="show every stage")
    macs.add_argument("--json", action="store_true", help="for machines: integers, 1 MAC each")
    macs.set_defaults(run=_macs)

    explain = commands.add_parser("explain", help="what a plan costs and can gain on a pipeline, without weights")
    explain.add_argument("--model", required=True, help="a known name, a diffusers folder, or a config.json")
    explain.add_argument("--num-steps", type=int, default=50, help="U-Net calls of a generation (default 50)")
    explain.add_argument("--interval", type=int, required=True, help="N: steps 0, N, 2N, ... are full")
    explain.add_argument("--branch", type=int, default=0, help="the skips 0..BRANCH stay live (default 0)")
    explain.add_argument("--order", type=int, default=0, help="of the prediction: 0 (the paper's reuse), 1 or 2")
    explain.add_argument("--last-step-full", action="store_true", help="the last step is full, too")
    explain.set_defaults(run=_explain)

    tables = commands.add_parser("tables", help="Markdown, CSV and LaTeX tables from a results file")
    tables.add_argument("results", type=Path, help="what pytest wrote: --benchmark-json FILE, or records.jsonl")
    tables.add_argument("--out", type=Path, default=Path("tables"), help="folder to write to (default tables)")
    tables.set_defaults(run=_tables)

    report = commands.add_parser("report", help="one HTML page from a results file: tables, plots, pictures")
    report.add_argument("results", type=Path, help="what pytest wrote: --benchmark-json FILE, or records.jsonl")
    report.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default report.html)")
    report.set_defaults(run=_report)

    gate = commands.add_parser("gate", help="compare results with a baseline: exit code 1 on a regression")
    gate.add_argument("baseline", type=Path, help="what to compare with; --update writes it")
    gate.add_argument("results", type=Path, help="what pytest wrote: --benchmark-json FILE, or records.jsonl")
    gate.add_argument("reruns", type=Path, nargs="*", help="the same run once more, to confirm what looks slower")
    gate.add_argument("--update", action="store_true", help="make the results the baseline (the median of several)")
    gate.set_defaults(run=_gate)
    return parser


def _macs(options: argparse.Namespace) -> str:
    from deepcache.models.architectures import architecture
    from deepcache.models.macs_report import report, to_text

    found = report(
        options.model,
        architecture(options.model, context_tokens=options.context_tokens),
        branch=options.branch,
        interval=options.interval,
        num_steps=options.num_steps,
    )
    return json.dumps(found, indent=2) if options.json else to_text(found, layer_wise=options.layer_wise)


def _explain(options: argparse.Namespace) -> str:
    from deepcache.explain import explain
    from deepcache.models.skeletons import skeleton
    from deepcache.plan import Interval

    plan = Interval(options.interval, options.branch, options.order, options.last_step_full)
    pipeline, context_tokens = skeleton(options.model)
    return str(explain(pipeline, plan, options.num_steps, name=options.model, context_tokens=context_tokens))


def _tables(options: argparse.Namespace) -> str:
    from deepcache.results import record

    try:
        from deepcache.results import tables
    except ImportError as error:
        raise DeepCacheError(f"tables need more packages ({error}); pip install 'deepcache-bench[bench]'") from error
    written = tables.render(record.read(options.results), options.out)
    shown = [path.read_text() for path in written if path.suffix == ".md" and path.stem != "all"]
    return "\n".join([*shown, "written: " + ", ".join(str(path) for path in written)])


def _report(options: argparse.Namespace) -> str:
    from deepcache.results import record

    try:
        from deepcache.results import report
    except ImportError as error:
        raise DeepCacheError(f"a report needs more packages ({error}); pip install 'deepcache-bench[bench]'") from error
    made_by = ["python", "-m", "deepcache", "report", str(options.results), "--out", str(options.out)]
    return f"written: {report.write(record.read(options.results), options.out, shlex.join(made_by))}"


def _gate(options: argparse.Namespace) -> object:
    from deepcache.results import record
    from deepcache.results.baseline import update
    from deepcache.results.gate import gate

    runs = [record.read(path) for path in (options.results, *options.reruns)]
    if options.update:
        return update(options.baseline, runs)
    if len(runs) > 2:
        raise DeepCacheError(f"expected results and at most one re-run, got {len(runs)} files; --update takes more")
    return gate(record.read(options.baseline), *runs)


if __name__ == "__main__":
    sys.exit(main())

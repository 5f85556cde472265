"""The gate's laws: for each, records that must pass and records that must not."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deepcache.__main__ import main
from deepcache.errors import DeepCacheError
from deepcache.results.compare import ALLOWANCES, CONDITIONS, interval
from deepcache.results.gate import gate
from deepcache.results.layout import Layout
from deepcache.results.record import Record, read

SEEDS = 60
PSNR_DB = [float(value) for value in np.random.default_rng(0).normal(30, 4, SEEDS)]


def row(name: str = "uniform N=3", experiment: str = "table1", **metrics: float) -> Record:
    settings = {"model": "mini-ldm", "scheduler": "ddim", "branch": 0, "order": 0, "num_steps": 100, "device": "cpu"}
    counted = {"macs": 100, "num_full": 34, "num_shallow": 66, "feature_bytes": 4096}
    return Record(
        Layout(experiment),
        {"method": name},
        {**settings, "first_seed": 0, "num_samples": SEEDS, "timing": "median of 3"},
        {**counted, "speedup": 2.4, "shallow_share": 0.3, "latency_s": 1.0, "fid": 1.5, **metrics},
        {"torch": "0", "python": "3"},
        "passed",
        {"psnr_db": PSNR_DB, "clip_score": [value / 2 for value in PSNR_DB]},
        [{"name": "a", "alt": "b", "data": "c"}],
    )


def seeds(record: Record, **values: object) -> Record:
    return replace(record, per_seed={**record.per_seed, **values})


def settings(record: Record, **values: object) -> Record:
    return replace(record, settings={**record.settings, **values})


def without(record: Record, *names: str) -> Record:
    return replace(record, metrics={name: value for name, value in record.metrics.items() if name not in names})


BASE = row()
MANY = [row(f"uniform N={n}", experiment) for experiment in ("table1", "table2") for n in (2, 3, 5)]


def regressions(found, *, base=BASE, rerun=None) -> list[str]:
    return gate([base], [found], [] if rerun is None else [rerun]).regressions


def test_the_same_records_pass_without_a_word():
    verdict = gate(MANY, MANY)
    assert str(verdict) == "gate: 6 records compared, 0 regressions"
    assert verdict.exit_code == 0


@pytest.mark.parametrize("key", ["macs", "num_full", "num_shallow", "feature_bytes"])
@pytest.mark.parametrize("change", [-1, +1])
def test_counts_must_be_equal_up_and_down(key, change):
    old = BASE.metrics[key]
    (text,) = regressions(row(**{key: old + change}))
    assert text == (
        f"table1 / uniform N=3 (mini-ldm, ddim, branch 0, order 0): {key}: {old} -> {old + change}; "
        "update the baseline if intended"
    )
    (text,) = regressions(without(BASE, key))
    assert text.endswith(f"{key}: {old} in the baseline, not measured here")
    assert not regressions(BASE, base=without(BASE, key))


def test_a_count_may_stand_in_the_settings():
    base = settings(without(BASE, "num_full"), num_full=34)
    assert not regressions(BASE, base=base)
    assert "num_full: 34 -> 35" in regressions(settings(without(BASE, "num_full"), num_full=35), base=base)[0]


@pytest.mark.parametrize(("key", "unit"), [("psnr_db", "dB"), ("clip_score", "points")])
def test_fidelity_may_fall_by_the_tolerance_and_no_further(key, unit):
    old = BASE.per_seed[key]
    assert not regressions(seeds(BASE, **{key: [value - 0.09 for value in old]}))
    assert not regressions(seeds(BASE, **{key: [value + 5.0 for value in old]}))
    (text,) = regressions(seeds(BASE, **{key: [value - 0.11 for value in old]}))
    assert f"{key}: the mean over 60 seeds changes by -0.110 to -0.110 {unit} (99% bootstrap), tolerance -0.1" in text


def test_fidelity_is_compared_seed_by_seed():
    """Seeds differ by 4 dB, so that unpaired means 0.3 dB apart would say nothing."""
    fallen = np.array(PSNR_DB) - 0.3 + np.random.default_rng(1).normal(0, 0.1, SEEDS)
    assert "the mean over 60 seeds" in regressions(seeds(BASE, psnr_db=fallen.tolist()))[0]
    shuffled = np.random.default_rng(2).permutation(fallen).tolist()
    assert not any("the mean" in text for text in regressions(seeds(BASE, psnr_db=shuffled)))


@pytest.mark.parametrize(("key", "unit"), [("psnr_db", "dB"), ("clip_score", "points")])
@pytest.mark.parametrize("i", [0, 17, SEEDS - 1])
def test_a_single_destroyed_seed_is_a_regression(key, unit, i):
    values = [*BASE.per_seed[key]]
    values[i] = 0.0
    (text,) = regressions(seeds(BASE, **{key: values}))
    old = BASE.per_seed[key][i]
    assert text.endswith(f"{key}: 1 of 60 seeds fall by more than 3 {unit}: seed {i} {old:.4g} -> 0")


@pytest.mark.parametrize("old", [4.9, 8.6, 20.0, 45.0, 80.0])
def test_a_seed_may_fall_by_what_the_noise_of_a_machine_does_and_by_no_destruction(old):
    """From the lowest PSNR of the committed baseline to equal images; a single code of the autoencoder costs 34 dB."""
    base = seeds(BASE, psnr_db=[old] * SEEDS, clip_score=[])
    for new, is_caught in ((old - 0.45, False), (46.0 if old == 80.0 else old, False), (0.0, True), (old / 3, True)):
        found = regressions(seeds(base, psnr_db=[new, *base.per_seed["psnr_db"][1:]]), base=base)
        assert bool(found) == is_caught


def test_the_seeds_that_fell_farthest_are_named_by_their_number():
    base = settings(BASE, first_seed=100)
    values = [*PSNR_DB]
    values[5], values[6], values[7], values[8] = (PSNR_DB[i] - fall for i, fall in ((5, 4), (6, 9), (7, 5), (8, 6)))
    text = regressions(seeds(base, psnr_db=values), base=base)[0]
    assert "4 of 60 seeds fall by more than 3 dB: seed 106 " in text
    assert text.index("seed 106") < text.index("seed 108") < text.index("seed 107")
    assert text.endswith(" and 1 more")
    assert "seed 105" not in text


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    draws = np.random.default_rng(3).exponential(1.0, (200, SEEDS))
    held = sum(low <= 1.0 <= high for low, high in map(interval, draws))
    assert held >= 190  # of 200; exponential differences are skewed, which costs the bootstrap a percent or two
    assert interval(draws[0]) == interval(draws[0])


def test_aggregates_and_absolute_times_are_not_gated():
    assert not regressions(row(fid=99.0, latency_s=99.0, throughput=0.1, fid_drift=9.0, psnr_db=1.0))


@pytest.mark.parametrize(
    ("key", "kept", "lost"), [("speedup", 2.4 * 0.86, 2.4 * 0.84), ("shallow_share", 0.3 * 1.09, 0.3 * 1.11)]
)
def test_a_ratio_is_lost_beyond_its_tolerance_unless_a_re_run_finds_it(key, kept, lost):
    slow, fine = row(**{key: lost}), row(**{key: kept})
    assert not regressions(fine)
    assert regressions(slow)[0].endswith("; not re-run")
    assert f"confirmed by a re-run, {lost:.3g}" in regressions(slow, rerun=slow)[0]
    assert regressions(slow, rerun=replace(fine, outcome="failed"))[0].endswith("; the re-run failed")
    verdict = gate([BASE], [slow], [fine])
    assert verdict.exit_code == 0
    assert "not confirmed by a re-run" in verdict.notes[0]


def test_a_ratio_may_improve_and_a_re_run_of_what_is_fine_does_not_count():
    assert not regressions(row(speedup=9.0, shallow_share=0.01))
    assert not regressions(BASE, rerun=row(speedup=0.1))


def test_speed_that_was_not_measured_cannot_be_compared_unless_allowed():
    untimed = [without(record, "speedup", "shallow_share") for record in MANY]
    verdict = gate(MANY, untimed)
    assert (verdict.exit_code, verdict.regressions) == (2, [])
    (text,) = verdict.incomparable
    assert text.startswith("speed not measured: 6 records (table1 / uniform N=2 (")
    assert text.endswith("; table1 / uniform N=5 (mini-ldm, ddim, branch 0, order 0) and 3 more)")
    assert str(verdict).splitlines()[-1].endswith("--allow speed (of pytest: --paper-gate-allow)")
    verdict = gate(MANY, untimed, allow=["speed"])
    assert (verdict.exit_code, verdict.notes) == (0, [f"{text}; allowed"])
    assert gate(MANY, [without(MANY[0], "speedup"), *MANY[1:]]).exit_code == 2  # one ratio of one row


def test_other_seeds_steps_and_lengths_cannot_be_compared():
    for name, value in (("first_seed", 5), ("num_samples", 30), ("num_steps", 50)):
        verdict = gate([BASE], [settings(BASE, **{name: value})], allow=ALLOWANCES)
        assert (verdict.exit_code, verdict.regressions) == (2, [])
        text, nothing = verdict.incomparable
        assert text.startswith(f"{name} is {value} instead of {BASE.settings[name]}: 1 record (table1 / uniform N=3 (")
        assert nothing.startswith("no record of the baseline can be compared")
    shorter = seeds(BASE, psnr_db=PSNR_DB[:-1]), replace(BASE, per_seed={"clip_score": BASE.per_seed["clip_score"]})
    for record, count in zip(shorter, (59, 0), strict=True):
        verdict = gate([BASE], [record])
        assert verdict.exit_code == 2
        assert verdict.incomparable[0].endswith(f"psnr_db: the baseline has 60 seeds and this record {count}")


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("missing_from", ["neither", "the baseline", "the record"])
def test_other_conditions_cannot_be_compared_unless_allowed(name, missing_from):
    base, found = settings(BASE, **{name: "a"}), settings(BASE, **{name: "b"}, macs=1)
    lacking: dict[str, Any] = {"neither": {name: 0}, "the baseline": base.settings, "the record": found.settings}
    del lacking[missing_from][name]
    verdict = gate([base, MANY[0]], [found, MANY[0]])
    assert (verdict.exit_code, verdict.regressions, verdict.num_compared) == (2, [], 1)
    old, new = base.settings.get(name, "missing"), found.settings.get(name, "missing")
    (text,) = verdict.incomparable
    assert text.startswith(f"{name} is {new} instead of {old}: 1 record (table1 / uniform N=3 (")
    assert str(verdict).splitlines()[-1].endswith(f"--allow {name} (of pytest: --paper-gate-allow)")
    verdict = gate([base, MANY[0]], [found, MANY[0]], allow=[name])
    assert (verdict.exit_code, verdict.num_compared, verdict.notes) == (0, 2, [f"{text}; allowed"])
    worse = settings(row(macs=101), **{name: "b"})
    assert "macs: 100 -> 101" in gate([base, MANY[0]], [worse, MANY[0]], allow=[name]).regressions[0]


def test_conditions_of_many_rows_are_one_line():
    (text,) = gate(MANY, [settings(record, dtype="float16") for record in MANY[:-1]] + MANY[-1:]).incomparable
    assert text.startswith("dtype is float16 instead of missing: 5 records (")


def test_the_machine_is_no_condition():
    elsewhere = replace(BASE, environment={"machine": "arm64", "torch": "9", "python": "4"})
    assert str(gate([BASE], [elsewhere])) == "gate: 1 record compared, 0 regressions"


def test_rows_of_which_nothing_is_gated_are_named():
    bare = [replace(row(f"row {i}", "figure2"), metrics={"similarity": 0.5}, per_seed={}) for i in (1, 2)]
    verdict = gate([*MANY, *bare], [*MANY, *bare])
    assert verdict.exit_code == 0
    assert verdict.notes == ["figure2: nothing is gated of 2 records: row 1; row 2"]


def test_rows_are_found_by_their_key_whatever_they_are_called():
    renamed = replace(BASE, label="another name", key=dict(reversed([*{**BASE.key, "interval": 3}.items()])))
    base = replace(BASE, key={**BASE.key, "interval": 3})
    assert gate([base], [renamed]).exit_code == 0
    other = replace(base, key={**base.key, "interval": 2})
    assert "missing; update the baseline" in gate([base, other], [base]).regressions[0]
    assert "new, not in the baseline" in gate([base], [base, other]).notes[0]


@pytest.mark.parametrize("name", ["model", "scheduler", "branch", "order"])
def test_rows_of_one_key_are_told_apart_by_what_was_run(name):
    other = settings(row(macs=200), **{name: "other"})
    assert gate([BASE, other], [other, BASE]).exit_code == 0
    assert gate([BASE, other], [BASE]).regressions[0].endswith("missing; update the baseline if intended")
    verdict = gate([BASE], [other])
    assert verdict.exit_code == 2
    assert verdict.incomparable[0].startswith(f"{name} is other instead of {BASE.settings[name]}")


def test_a_missing_record_is_a_regression_where_its_experiment_was_run():
    (text,) = gate(
        MANY, [record for record in MANY if record.label != "uniform N=5" or record.table.name == "table2"]
    ).regressions
    assert text.startswith("table1 / uniform N=5 (")


def test_an_experiment_that_was_not_run_cannot_be_compared_unless_allowed():
    alone = gate(MANY, MANY[:3])
    assert (alone.exit_code, alone.regressions) == (2, [])
    assert alone.incomparable == ["table2: not run (3 records)"]
    alone = gate(MANY, MANY[:3], allow=["experiments"])
    assert (alone.exit_code, alone.notes) == (0, ["table2: not run (3 records); allowed"])
    assert gate(MANY, MANY[:2], allow=["experiments"]).exit_code == 1  # a row of one that was run


@pytest.mark.parametrize("outcome", ["error", "skipped", "xfailed", "xpassed", "rerun", "unknown", "", "Passed"])
def test_only_passed_is_a_pass(outcome):
    (text,) = regressions(replace(BASE, outcome=outcome))
    assert text.endswith(f": has the outcome {outcome!r}, not 'passed'")
    assert regressions(replace(BASE, outcome=outcome), rerun=replace(BASE, outcome=outcome))
    assert gate([BASE], [replace(BASE, outcome=outcome)], [BASE]).exit_code == 0
    with pytest.raises(DeepCacheError, match="expected a baseline of passed records"):
        gate([replace(BASE, outcome=outcome)], [BASE])
    slow = row(speedup=1.0)
    assert regressions(slow, rerun=replace(BASE, outcome=outcome))[0].endswith("; the re-run failed")


def test_new_records_are_a_note_and_failed_ones_a_regression():
    new = row("uniform N=7")
    assert gate(MANY, [*MANY, new]).notes == [
        "table1 / uniform N=7 (mini-ldm, ddim, branch 0, order 0): new, not in the baseline"
    ]
    assert gate(MANY, [*MANY, new]).exit_code == 0
    assert gate(MANY, [*MANY, replace(new, outcome="failed")]).regressions[0].endswith(": failed")
    assert regressions(replace(BASE, outcome="failed"))[0].endswith(": failed")
    assert regressions(replace(BASE, outcome="failed"), rerun=replace(BASE, outcome="failed"))[0].endswith(": failed")
    verdict = gate([BASE], [replace(BASE, outcome="failed")], [BASE])
    assert verdict.exit_code == 0
    assert verdict.notes[0].endswith(": failed, and passed when run again")


def test_nothing_compared_is_no_pass():
    for results in ([row(experiment="table9")], []):
        verdict = gate(MANY, results, allow=ALLOWANCES)
        assert verdict.exit_code == 2
        assert verdict.incomparable == ["no record of the baseline can be compared with one of the results"]


def test_a_record_that_stands_there_twice_is_named():
    worse = row(macs=101)
    assert "recorded 2 times" in gate([BASE], [BASE, worse]).incomparable[0]
    with pytest.raises(DeepCacheError, match=r"the baseline holds table1 / uniform N=3 .* twice"):
        gate([BASE, worse], [BASE])


def test_ten_honest_re_runs_give_no_false_alarm_and_a_real_slowdown_is_caught():
    """Ratios of 4 % noise for the speedup and 2 % for the shallow step, baseline included; 30 rows, each run twice.

    At these two, ten runs give a false alarm in 3 % and in 0.6 % of all cases (two million draws); without the re-runs
    one is near certain.
    """
    generator = np.random.default_rng(0)

    def run(slower: float = 1.0) -> list[Record]:
        noise = 1 + generator.standard_normal((30, 2)) * (0.04, 0.02)
        return [
            row(f"row {i}", speedup=2.4 * float(a), shallow_share=0.3 * slower * float(b))
            for i, (a, b) in enumerate(noise)
        ]

    baseline = run()
    runs = [(run(), run()) for _ in range(10)]
    assert not any(gate(baseline, first, second).exit_code for first, second in runs)
    assert any(gate(baseline, first).exit_code for first, _ in runs)
    slowed = [gate(baseline, run(1.2), run(1.2)) for _ in range(10)]
    assert all(len(verdict.regressions) >= 25 for verdict in slowed)


@pytest.fixture
def write(tmp_path):
    def to(name: str, records: list[Record]) -> str:
        path = tmp_path / name
        path.write_text(json.dumps({"benchmarks": [], "deepcache": [record.as_dict() for record in records]}))
        return str(path)

    return to


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["gate", *arguments])
    return code, *capsys.readouterr()


def test_the_command_exits_with_0_1_or_2(capsys, write, tmp_path):
    base, same, slow = write("base.json", MANY), write("same.json", MANY), write("slow.json", [row(speedup=1.0)])
    assert command(capsys, base, same) == (0, "gate: 6 records compared, 0 regressions\n", "")
    code, out, _ = command(capsys, base, slow)
    assert code == 1
    assert "\nregression: table1 / uniform N=3 (mini-ldm, ddim, branch 0, order 0): speedup: 2.4 -> 1 (-58.3%)" in out
    assert "not re-run" in out
    assert command(capsys, write("base.json", [BASE]), slow, same)[0] == 0
    for arguments in ((base, str(tmp_path / "none.json")), (base, same, same, same), (write("x", [BASE, BASE]), same)):
        code, out, err = command(capsys, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: ")


def test_a_baseline_holds_what_is_gated_and_no_more(capsys, write, tmp_path):
    path = tmp_path / "baselines" / "mini.json"
    assert command(capsys, "--update", str(path), write("run.json", MANY))[0] == 0
    assert len(json.loads(path.read_text())["deepcache"]) == 6
    assert len(path.read_text().splitlines()) == 6 + 2  # one a line
    slim = read(path)[1]
    assert "device" in slim.settings
    assert "timing" not in slim.settings
    assert slim.metrics.keys() == {"macs", "num_full", "num_shallow", "feature_bytes", "speedup", "shallow_share"}
    assert (slim.pictures, slim.environment) == ([], {"torch": "0"})
    assert slim.per_seed["psnr_db"] == pytest.approx(PSNR_DB, abs=1e-4, rel=0)
    assert gate(read(path), MANY).exit_code == 0
    for broken in (row(macs=99), row(speedup=1.0), seeds(BASE, psnr_db=[value - 1 for value in PSNR_DB])):
        assert gate(read(path), [MANY[0], broken, MANY[2]], allow=["experiments"]).exit_code == 1


def test_an_update_replaces_the_experiments_that_were_run_and_keeps_the_others(capsys, write, tmp_path):
    path = str(tmp_path / "mini.json")
    command(capsys, "--update", path, write("all.json", MANY))
    code, out, _ = command(capsys, "--update", path, write("one.json", [row("uniform N=9")]))
    assert (code, "1 records of table1; 3 of other experiments kept" in out) == (0, True)
    found = read(tmp_path / "mini.json")
    assert [(record.table.name, record.label[-1]) for record in found] == [
        ("table2", "2"), ("table2", "3"), ("table2", "5"), ("table1", "9")
    ]  # fmt: skip


def test_a_baseline_of_several_runs_takes_the_median_of_their_ratios(capsys, write, tmp_path):
    runs = [write(f"{i}.json", [row(speedup=value)]) for i, value in enumerate((2.0, 9.0, 2.2))]
    assert "times of 1 of 3 runs" in command(capsys, "--update", str(tmp_path / "mini.json"), *runs[:1])[1]
    code, out, _ = command(capsys, "--update", str(tmp_path / "mini.json"), *runs)
    assert (code, "times of" in out) == (0, False)
    assert read(tmp_path / "mini.json")[0].metrics["speedup"] == 2.2


def test_what_cannot_be_a_baseline_is_one_line_and_leaves_the_old_one(capsys, write, tmp_path):
    path = tmp_path / "mini.json"
    command(capsys, "--update", str(path), write("all.json", MANY))
    old = path.read_bytes()
    for runs, message in (
        ([[replace(BASE, outcome="failed")]], "failed"),
        ([[BASE, BASE]], "twice"),
        ([[replace(BASE, outcome="skipped")]], "has the outcome 'skipped'"),
        ([MANY, MANY[:1]], "is not in each"),
        ([MANY[:1], MANY], "is not in each"),
        ([MANY, [settings(record, dtype="float16") for record in MANY]], "dtype is float16 instead of missing"),
    ):
        files = [write(f"run{i}.json", run) for i, run in enumerate(runs)]
        code, _, err = command(capsys, "--update", str(path), *files)
        assert message in err
        assert (code, err.count("\n")) == (2, 1)
        assert path.read_bytes() == old


def test_the_gate_imports_no_torch():
    code = "import sys, deepcache.results.gate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_numbers_of_a_second_run_count_where_it_decides_the_outcome():
    broken = replace(seeds(BASE, psnr_db=[1.0] * len(PSNR_DB)), metrics={**BASE.metrics, "macs": 99})
    verdict = gate([BASE], [replace(BASE, outcome="failed")], [broken])
    assert verdict.exit_code == 1
    assert len(verdict.regressions) >= 2
    slow = replace(BASE, metrics={**BASE.metrics, "speedup": 0.5})
    assert gate([BASE], [replace(BASE, outcome="failed")], [slow]).exit_code == 0  # one slow run of two
    assert len(gate([BASE], [replace(slow, outcome="failed")], [slow]).regressions) == 1
    assert gate([BASE], [replace(BASE, outcome="failed")], [settings(BASE, dtype="float16")]).exit_code == 2
    assert gate([BASE], [broken], [BASE]).exit_code == 1

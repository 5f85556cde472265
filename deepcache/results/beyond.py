"""The tables beyond the paper: prediction, cost against fidelity, speed against the older package, MACs by stage."""

from __future__ import annotations

from deepcache.results.experiments import DRIFT, FEATURE, MACS, MEDIAN, NEAREST, NUM_FULL, PSNR, TIPPED, TOTAL
from deepcache.results.layout import Column, Layout, Plot

PREDICTION = Layout(
    experiment="prediction",
    title="Predicted against reused features: cached against uncached samples of the same seeds",
    columns=(
        TOTAL,
        Column("psnr_db", "PSNR of the mean error (dB)", 1),
        MEDIAN,
        TIPPED,
        Column("psnr_untipped_db", "PSNR of the mean error without them (dB)", 1),
        DRIFT,
    ),
    plot=Plot("total_macs", "psnr_median_db", "MACs of a sample", NEAREST),
)
SUMMARY = Layout(
    experiment="summary",
    title="Summary: at equal MACs, prediction against reuse and against fewer steps",
    columns=(
        MACS,
        Column("steps_psnr", "fewer steps (dB)", 1),
        Column("order0_psnr", "order 0 (dB)", 1),
        Column("order1_psnr", "order 1 (dB)", 1),
        Column("order2_psnr", "order 2 (dB)", 1),
        Column("gain", "best prediction over the better of both (dB)", 1),
    ),
)
PARETO = Layout(
    experiment="pareto",
    title="Cost against fidelity: fewer steps, reuse, prediction, tuned plans (from, to: 95% bootstrap over seeds)",
    columns=(
        Column("share", "MACs, share of the uncached (%)", 1, scale=0.01),
        TOTAL,
        NUM_FULL,
        PSNR,
        Column("psnr_db_low", "from", 1),
        Column("psnr_db_high", "to", 1),
        MEDIAN,
        Column("psnr_median_db_low", "median from", 1),
        Column("psnr_median_db_high", "median to", 1),
        Column("solved_db", "PSNR to the solution, median seed (dB)", 1),
        Column("solved_db_low", "solution from", 1),
        Column("solved_db_high", "solution to", 1),
        TIPPED,
        DRIFT,
        Column("clip_loss", "CLIP score lost", 2),
        Column("clip_loss_low", "lost from", 2),
        Column("clip_loss_high", "lost to", 2),
    ),
)
PARETO_TARGETS = Layout(
    experiment="pareto_targets",
    title="Cost against fidelity: what was aimed at, and of the prediction that is chosen (from: 95% bootstrap)",
    columns=(
        *(
            column
            for n in (2, 3, 5)
            for column in (
                Column(f"gain_{n}", f"over reuse, N={n} (dB; aim 8)", 1),
                Column(f"gain_{n}_low", f"from, N={n}", 1),
            )
        ),
        *(
            column
            for n in (2, 3, 5)
            for column in (
                Column(f"gain_median_{n}", f"median seed, N={n} (dB; aim 12)", 1),
                Column(f"gain_median_{n}_low", f"median from, N={n}", 1),
            )
        ),
        Column("lead_uncached", "least lead over fewer steps, 25-70% of MACs (dB; aim 0)", 1),
        Column("lead_solved", "the same, to the solution (dB; aim 0)", 1),
        Column("gain_cheaper", "over reuse at N=3, for 0.6 of its MACs (dB; aim 0)", 1),
        Column("num_held", "aims held", 0),
        Column("num_targets", "of", 0),
    ),
)
UPSTREAM = Layout(
    experiment="upstream",
    title="Speed at the same plan: uncached, by the older package, and by this library",
    columns=(
        Column("latency_s", "U-Net of a generation (s)", 3),
        Column("speedup", "speedup", 2),
        Column("macs_bound", "bound by MACs", 2),
        Column("bound_share", "of the bound (%)", 1, scale=0.01),
        Column("against_older", "times the older's speed", 2),
        Column("host_s", "host (ms a step)", 2, scale=1e-3),
        Column("peak_bytes", "peak memory (MiB)", 1, scale=2**20),
        FEATURE,
        Column("num_features", "kept tensors", 0),
        Column("error", "differs from eager (1e-6)", 2, scale=1e-6),
    ),
)
MACS_LAYERS = Layout(
    experiment="macs_layers",
    title="MACs of every stage, and the branch from which on a shallow step runs it",
    columns=(
        Column("macs", "MACs (G)", 4, scale=1e9),
        Column("macs_share", "of a full step (%)", 1, scale=0.01),
        Column("attention_macs", "attention products beside (G)", 4, scale=1e9),
        Column("live_from", "live from branch", 0),
    ),
)

"""Every experiment's table: the paper's, its course-project extension's, and those beyond."""

from __future__ import annotations

from typing import Any

from deepcache.results.layout import PROTOCOL, Column, Layout, Plot

MACS = Column("macs", "MACs (G)", 4, "macs_g", scale=1e9, same=("model", "uncached_steps"))
TOTAL = Column("total_macs", "MACs of a sample (G)", 3, scale=1e9, same=("model",))
THROUGHPUT = Column("throughput", "images/s", 2, "throughput", same=None)
SPEEDUP = Column("speedup", "speedup", 2, "speedup", same=())
FID = Column("fid", "FID", 2, "fid")
SFID = Column("sfid", "sFID", 2, "sfid")
IS = Column("is", "IS", 2, "is")
PRECISION = Column("precision", "precision (%)", 1, "precision")
RECALL = Column("recall", "recall (%)", 1, "recall")
CLIP = Column("clip_score", "CLIP score", 2, "clip_score", same=(*PROTOCOL, "clip"))
PSNR = Column("psnr_db", "PSNR (dB)", 1)
MEDIAN = Column("psnr_median_db", "PSNR, median seed (dB)", 1)
TIPPED = Column("tipped", "tipped seeds (%)", 1)
DRIFT = Column("fid_drift", "FID drift", 3)
NUM_FULL = Column("num_full", "full steps", 0)
FEATURE = Column("feature_bytes", "feature (KiB)", 1, scale=1024)
LATENCY = Column("latency_s", "latency (s)", 2)
SPEED = (MACS, THROUGHPUT, SPEEDUP)
NEAREST = "PSNR to the uncached images, median seed (dB)"
QUALITY = (FID, SFID, IS, PRECISION, RECALL)
FIDELITY: dict[str, Any] = {"extractor": "Inception", "num_samples": 50_000}
LDM: dict[str, Any] = {**FIDELITY, "model": "ldm-4-g", "uncached_steps": 250, "guidance_scale": 1.5}
DDPM: dict[str, Any] = {**FIDELITY, "model": "ddpm-cifar10", "uncached_steps": 100}
SD: dict[str, Any] = {
    "model": "sd-1.5",
    "uncached_steps": 50,
    "guidance_scale": 7.5,
    "clip": "ViT-g-14/laion2b_s34b_b88k",
}
COCO, PARTI = "MS-COCO 2017 val (5k captions)", "PartiPrompts (1.63k prompts)"
COCO_PROMPTS: dict[str, Any] = {"prompts": "captions_val2017.json", "num_samples": 5_000}
PARTI_PROMPTS: dict[str, Any] = {"prompts": "PartiPrompts.tsv", "num_samples": 1_632}
CIFAR, BEDROOM, CHURCH = "CIFAR-10 32x32", "LSUN-Bedroom 256x256", "LSUN-Churches 256x256"


def _ddpm_rows(name: str, dataset: str, intervals: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    cached = {f"{name}, N={n}": {"method": f"DeepCache uniform - N={n}", "dataset": dataset} for n in intervals}
    return {f"{name}, uncached": {"method": "DDPM*", "dataset": dataset}, **cached}


def _sd_rows(dataset: str) -> dict[str, dict[str, Any]]:
    """Table 13 has PartiPrompts', Table 14 COCO's; BK-SDM stands in Table 3."""
    plms = {f"PLMS {n} steps": {"method": "PLMS", "steps": n, "dataset": dataset} for n in range(15, 51, 5)}
    kinds = {"uniform": "uniform", "quadratic": "nonuniform"}
    cached = {
        f"{ours} N={n}": {"method": f"DeepCache {theirs}", "interval": n, "dataset": dataset}
        for ours, theirs in kinds.items()
        for n in range(2, 9)
    }
    pruned = {
        f"{name}-{size.lower()}": {"table": "Table 3", "method": f"BK-SDM - {size}", "dataset": dataset}
        for name in ("mini-bk", "bk-sdm")
        for size in ("Base", "Small", "Tiny")
    }
    return {**plms, **cached, **pruned}


def _table3(dataset: str, **published: Any) -> Layout:
    return Layout(
        experiment="table3",
        title="Table 3, Tables 13 and 14, Figure 6: text to image against fewer steps and pruned U-Nets",
        columns=(*SPEED, CLIP, PSNR, MEDIAN),
        rows=_sd_rows(dataset),
        models={f"bk-sdm-{size}": {"model": f"bk-sdm-{size}"} for size in ("base", "small", "tiny")},
        plot=Plot("throughput", "clip_score", "images/s", "CLIP score"),
        **published,
    )


def _zeroed_rows(names: tuple[str, ...], **where: Any) -> dict[str, dict[str, Any]]:
    kept = {name: {"method": "DeepCache", **where} for name in names}
    return kept | {
        f"{name}, zeros": {"method": "DeepCache w/o cached features (zero matrix)", **where} for name in names
    }


def _macs_rows() -> dict[str, dict[str, Any]]:
    """The columns that reproduce; Table 3's N = 5 does not (it is N = 4's value)."""

    def rows(model: str, uncached: str, kind: str, intervals: tuple[int, ...], **where: str) -> dict[str, Any]:
        methods = {n: uncached if n == 1 else f"{kind} - N={n}" for n in intervals}
        return {f"{model}, N={n}": {"method": method, **where} for n, method in methods.items()}

    ddpm = ("DDPM*", "DeepCache uniform")
    return {
        **rows("ldm-4-g", "LDM-4*", "Uniform", (1, 2, 3, 5, 10, 20), table="Table 1"),
        **rows("ddpm-cifar10", *ddpm, (1, 2, 3, 5, 10), table="Table 2", dataset=CIFAR),
        **rows("ddpm-lsun", *ddpm, (1, 2, 3, 5), table="Table 2", dataset=BEDROOM),
        **rows("sd-1.5", "PLMS - 50 steps", "", (1,), table="Table 3", dataset=COCO),
        **rows("bk-sdm-base", "BK-SDM - Base", "", (1,), table="Table 3", dataset=COCO),
        **rows("bk-sdm-small", "BK-SDM - Small", "", (1,), table="Table 3", dataset=COCO),
        **rows("bk-sdm-tiny", "BK-SDM - Tiny", "", (1,), table="Table 3", dataset=COCO),
    }


TABLE1 = Layout(
    experiment="table1",
    title="Table 1: class-conditional generation",
    columns=(*SPEED, *QUALITY, PSNR, MEDIAN, DRIFT),
    published_table="Table 1",
    published_label="LDM-4-G, ImageNet 256, DDIM 250 steps, 50,000 samples, one RTX 2080; MACs without group norms",
    published_settings=LDM,
    rows={
        "uncached": {"method": "LDM-4*"},
        **{f"uniform N={n}": {"method": f"Uniform - N={n}"} for n in (2, 3, 5, 10, 20)},
        **{f"quadratic N={n}": {"method": f"NonUniform - N={n}"} for n in (10, 20)},
    },
    plot=Plot("speedup", "psnr_median_db", "speedup", NEAREST),
)
TABLE2 = Layout(
    experiment="table2",
    title="Table 2: unconditional generation in pixel space",
    columns=(*SPEED, FID, PSNR, MEDIAN, DRIFT),
    published_table="Table 2",
    published_label="DDPM, branch 2, DDIM 100 steps (CIFAR-10: quadratic timesteps, LSUN-Bedroom: uniform), RTX 2080",
    published_settings=DDPM,
    rows={
        **_ddpm_rows("quadratic timesteps", CIFAR, (2, 3, 5, 10)),
        **_ddpm_rows("uniform timesteps", BEDROOM, (2, 3, 5)),
        **_ddpm_rows("CIFAR-10", CIFAR, (2, 3, 5, 10)),
        **_ddpm_rows("LSUN-Bedroom", BEDROOM, (2, 3, 5)),
        **_ddpm_rows("LSUN-Church", CHURCH, (2, 3, 5)),
    },
    models={
        **{row: {"model": "ddpm-bedroom"} for row in _ddpm_rows("LSUN-Bedroom", BEDROOM, (2, 3, 5))},
        **{row: {"model": "ddpm-church"} for row in _ddpm_rows("LSUN-Church", CHURCH, (2, 3, 5))},
    },
)
TABLE3 = _table3(
    COCO,
    published_table="Table 14",
    published_label="Stable Diffusion v1.5, branch 1, PLMS 50 steps, 5,000 captions of COCO, one RTX 2080",
    published_settings={**SD, **COCO_PROMPTS},
    of_prompts={
        PARTI_PROMPTS["prompts"]: _table3(
            PARTI,
            published_table="Table 13",
            published_label="Stable Diffusion v1.5, branch 1, PLMS 50 steps, 1,632 PartiPrompts, one RTX 2080",
            published_settings={**SD, **PARTI_PROMPTS},
        )
    },
)
TABLE4 = Layout(
    experiment="table4",
    title="Tables 4 and 6: fewer steps at the same cost, and at the same number of full steps",
    columns=(TOTAL, NUM_FULL, FID, SFID, PSNR, MEDIAN),
    published_table="Table 4",
    published_label="LDM-4-G, ImageNet 256, DDIM, at the same throughput",
    published_settings=LDM,
    rows={
        "ddim, N=5": {"method": "DeepCache uniform N=5"},
        "ddim, N=3": {"method": "DeepCache uniform N=3"},
        "ddim, fewer steps at the cost of N=5": {"method": "DDIM - 59 steps"},
        "ddim, fewer steps at the cost of N=3": {"method": "DDIM - 91 steps"},
    },
)
TABLE5 = Layout(
    experiment="table5",
    title="Table 5: what the deep feature is for",
    columns=(FID, PSNR, DRIFT),
    published_table="Table 5",
    published_label="DDPM on CIFAR-10 at N = 10 (branch 2), LDM-4-G on ImageNet at N = 20 of 250 steps (branch 0)",
    published_settings=LDM,
    rows={
        **_zeroed_rows(("mini-ddpm, N=10", "ddpm-cifar10, N=10"), dataset=CIFAR),
        **_zeroed_rows(("mini-ldm, N=5", "ldm-4-g, N=20"), interval=20),
    },
    models={row: {**DDPM, "guidance_scale": None} for row in _zeroed_rows(("ddpm-cifar10, N=10",))},
)
TABLE7 = Layout(
    experiment="table7",
    title="Tables 7 to 10: centre and power of the quadratic plan",
    columns=(NUM_FULL, *QUALITY, PSNR, MEDIAN),
    published_table="Table 7",
    published_label="LDM-4-G, ImageNet 256, DDIM 250 steps, N = 20: 13 full steps, as here",
    published_settings=LDM,
    rows={
        **{f"centre {c}/250, power 1.2": {"center": float(c), "power": 1.2} for c in (10, 50, 120, 200)},
        **{f"centre 120/250, power {p}": {"table": "Table 8", "center": 120, "power": p} for p in (1.05, 1.4)},
    },
)
TABLE12 = Layout(
    experiment="table12",
    title="Table 12 and Figure 4: every branch at N = 5",
    columns=(*SPEED, FID, CLIP, PSNR, MEDIAN),
    published_table="Table 12",
    published_label="DDPM, CIFAR-10, DDIM 100 steps, quadratic timesteps, N = 5",
    published_settings=DDPM,
    rows={f"{model}, branch {b}": {"branch": b} for model in ("mini-ddpm", "ddpm-cifar10") for b in range(12)},
    plot=Plot("speedup", "psnr_median_db", "speedup", NEAREST, by="model"),
)
SCHEDULER = Layout(
    experiment="scheduler",
    title="Scheduler ablation (course project, 4.1)",
    columns=(LATENCY, SPEEDUP, CLIP, PSNR, MEDIAN, TIPPED),
)
LAYERWISE = Layout(
    experiment="layerwise",
    title="Layer-wise ablation (course project, 4.2): every skip at N = 5",
    columns=(MACS, SPEEDUP, CLIP, PSNR, FEATURE, Column("peak_bytes", "peak memory (MiB)", 1, scale=2**20)),
    plot=Plot("speedup", "clip_score", "speedup", "CLIP score"),
)
DIVERSITY = Layout(
    experiment="diversity",
    title="Diversity and variance over seeds (course project, 4.3)",
    columns=(
        Column("pairwise_perceptual", "pairwise perceptual distance", 3),
        Column("pairwise_mse", "pairwise MSE", 4),
        Column("clip_mean", "CLIP score, mean", 2),
        Column("clip_variance", "CLIP score, variance", 3),
    ),
)
FIGURE7 = Layout(
    experiment="figure7",
    title="Figure 7: evolution with the interval",
    columns=(MACS, CLIP, PSNR, MEDIAN, TIPPED),
    plot=Plot("macs", "psnr_median_db", "MACs", NEAREST),
)
FIGURE2 = Layout(
    experiment="figure2",
    title="Figure 2: how alike the features of two steps are",
    columns=(
        Column("similarity_adjacent", "cosine similarity of adjacent steps, mean", 4),
        Column("similarity_lowest", "lowest", 4),
        Column("similar_share", "steps alike above 0.95, mean (%)", 1),
    ),
)
WORKFLOWS = Layout(
    experiment="workflows",
    title="Workflows: text to image, image to image, inpainting",
    columns=(LATENCY, SPEEDUP, CLIP, PSNR),
)
MACS_TABLE = Layout(
    experiment="macs",
    title="MACs of full and shallow steps, and the share of a full step's time",
    columns=(
        Column("macs", "mean over the plan (G)", 4, "macs_g", scale=1e9, same=()),
        Column("macs_full", "full step (G)", 4, scale=1e9),
        Column("macs_shallow", "shallow step (G)", 4, scale=1e9),
        Column("macs_share", "of the MACs (%)", 1, scale=0.01),
        Column("shallow_share", "of the time (%)", 1, scale=0.01),
    ),
    published_table="Table 1",
    published_label="Table 1 (LDM-4-G), Table 2 (DDPM), Table 3 (Stable Diffusion v1.5), as printed",
    published_settings={"extractor": "as printed"},
    rows=_macs_rows(),
)

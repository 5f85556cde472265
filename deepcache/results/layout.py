"""How each experiment's records become a table: columns, rows, and their published counterparts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Column:
    """A metric as it is printed.

    `key` in a record's metrics and `published` in the paper's rows; `digits` after the point; `scale` the
    number that a printed unit holds of the recorded one. `same` is what a record must have in common with the
    published row for their difference to mean something: settings by name, or None where it never does.
    """

    key: str
    title: str
    digits: int
    published: str = ""
    scale: float = 1.0
    same: tuple[str, ...] | None = ("model", "extractor")


@dataclass(frozen=True)
class Layout:
    """A table, of the paper or beyond it.

    `rows` maps a record's row to the method of the published row beside it; `published_settings` are the
    paper's, by the names that records use. A table that the paper does not have leaves these empty.
    """

    experiment: str
    title: str
    columns: tuple[Column, ...]
    published_table: str = ""
    published_label: str = ""
    published_settings: dict[str, str] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)


TABLE1 = Layout(
    experiment="table1",
    title="Table 1: class-conditional generation",
    columns=(
        Column("macs", "MACs (G)", 4, "macs_g", scale=1e9, same=("model",)),
        Column("throughput", "images/s", 2, "throughput", same=None),
        Column("speedup", "speedup", 2, "speedup", same=()),
        Column("fid", "FID", 2, "fid"),
        Column("sfid", "sFID", 2, "sfid"),
        Column("is", "IS", 2, "is"),
        Column("precision", "precision (%)", 1, "precision"),
        Column("recall", "recall (%)", 1, "recall"),
        Column("psnr_db", "PSNR (dB)", 1),
        Column("fid_drift", "FID drift", 3),
    ),
    published_table="Table 1",
    published_label="LDM-4-G, ImageNet 256, DDIM 250 steps, 50,000 samples, one RTX 2080; MACs without group norms",
    published_settings={"model": "ldm-4-g", "extractor": "Inception"},
    rows={
        "uncached": "LDM-4*",
        **{f"uniform N={n}": f"Uniform - N={n}" for n in (2, 3, 5, 10, 20)},
        **{f"quadratic N={n}": f"NonUniform - N={n}" for n in (10, 20)},
    },
)

PREDICTION = Layout(
    experiment="prediction",
    title="Predicted against reused features: cached against uncached samples of the same seeds",
    columns=(
        Column("macs", "MACs (G)", 4, scale=1e9),
        Column("speedup", "speedup", 2),
        Column("psnr_db", "PSNR of the mean error (dB)", 1),
        Column("psnr_median_db", "PSNR, median seed (dB)", 1),
        Column("tipped", "tipped seeds (%)", 1),
        Column("psnr_untipped_db", "PSNR of the mean error without them (dB)", 1),
        Column("fid_drift", "FID drift", 3),
    ),
)

LAYOUTS = (TABLE1, PREDICTION)

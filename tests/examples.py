"""Made-up records and their table, for the tests of results and of the command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deepcache.results.layout import PROTOCOL, Column, Layout, Plot, Published, published_row
from deepcache.results.record import Record, layout_entry

SETTINGS = {
    "model": "mini-ldm",
    "weights": "embedded",
    "extractor": "mini-features",
    "device": "cpu",
    "num_threads": 2,
    "num_samples": 8,
}
PAPER = {"model": "ldm-4-g", "extractor": "Inception", "num_samples": 50_000, "uncached_steps": 250}
PAPER |= {"guidance_scale": 1.5}


def _beside(key: dict[str, Any], method: str) -> Published:
    """Return a row of the paper's Table 1."""
    found = published_row(table="Table 1", method=method)
    values = {name: found[name] for name in ("macs_g", "throughput", "speedup", "fid", "sfid", "is", "precision")}
    label = "LDM-4-G, ImageNet 256, DDIM 250 steps, 50,000 samples, one RTX 2080; MACs without group norms"
    return Published(key, {**values, "recall": found["recall"]}, label, PAPER, found.get("note", ""))


TABLE1 = Layout(
    "table1",
    title="Table 1: class-conditional generation",
    columns=(
        Column("macs", "MACs (G)", 4, "macs_g", scale=1e9, same=("model", "uncached_steps")),
        Column("throughput", "images/s", 2, "throughput", same=None),
        Column("speedup", "speedup", 2, "speedup", same=()),
        Column("fid", "FID", 2, "fid"),
        Column("sfid", "sFID", 2, "sfid"),
        Column("is", "IS", 2, "is"),
        Column("precision", "precision (%)", 1, "precision"),
        Column("recall", "recall (%)", 1, "recall"),
        Column("psnr_db", "PSNR (dB)", 1),
        Column("psnr_median_db", "PSNR, median seed (dB)", 1),
        Column("fid_drift", "FID drift", 3, same=(*PROTOCOL, "extractor")),
    ),
    published=(
        _beside({"method": "uncached"}, "LDM-4*"),
        _beside({"method": "uniform", "interval": 3}, "Uniform - N=3"),
        _beside({"method": "quadratic", "interval": 20}, "NonUniform - N=20"),
    ),
    plot=Plot("speedup", "psnr_median_db", "speedup", "PSNR to the uncached images, median seed (dB)"),
    number=1,
)


def table1_record(
    method: str, interval: int = 1, *, outcome: str = "passed", label: str = "", **metrics: float
) -> Record:
    """Return a row of Table 1."""
    label = label or (method if interval == 1 else f"{method} N={interval}")
    key = {"method": method, "interval": interval}
    return Record(TABLE1, key, dict(SETTINGS), dict(metrics), {"torch": "0"}, outcome, label=label)


RECORDS = [
    table1_record("uncached", macs=69_158_096, throughput=7.5, speedup=1.0, fid=1.25, sfid=9.5, precision=88.5),
    table1_record("uniform", 3, macs=28_822_901, throughput=18.0, speedup=2.4, fid=1.5, psnr_db=26.5, fid_drift=0.02),
    table1_record("quadratic", 20, outcome="failed", macs=11_101_012, speedup=6.1),
    table1_record("fewer steps", 3, label="42 steps (MACs of N=3)", macs=28_822_901, fid=1.4),
]


def entries(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return the records as a results file has them, each table's layout before them."""
    tables = {record.table.name: record.table for record in records}
    return [*map(layout_entry, tables.values()), *(record.as_dict() for record in records)]

"""Made-up records for the tests of tables, plugin and command line."""

from __future__ import annotations

from deepcache.results.record import Record

SETTINGS = {
    "model": "mini-ldm",
    "weights": "embedded",
    "extractor": "mini-features",
    "device": "cpu",
    "num_threads": 2,
    "num_samples": 8,
}


def table1_record(row: str, *, outcome: str = "passed", **metrics: float) -> Record:
    return Record("table1", row, dict(SETTINGS), dict(metrics), {"torch": "0"}, outcome)


RECORDS = [
    table1_record("uncached", macs=69_158_096, throughput=7.5, speedup=1.0, fid=1.25, sfid=9.5, precision=88.5),
    table1_record("uniform N=3", macs=28_822_901, throughput=18.0, speedup=2.4, fid=1.5, psnr_db=26.5, fid_drift=0.02),
    table1_record("quadratic N=20", outcome="failed", macs=11_101_012, speedup=6.1),
    table1_record("42 steps (MACs of N=3)", macs=28_822_901, fid=1.4),
]

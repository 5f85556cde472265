"""Sampling: seeds become samples. Sample i depends on seed i alone, up to the rounding of floats (docs/sampling.md)."""

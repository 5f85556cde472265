"""Sampling turns seeds into samples; sample i depends on seed i alone, up to float rounding (docs/sampling.md)."""

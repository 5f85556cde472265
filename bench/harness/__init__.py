"""The benches load, sample, time and measure models by these modules."""

"""What the gate catches: regressions that are planted on purpose, and honest runs."""

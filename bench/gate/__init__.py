"""These modules show what the gate catches: regressions are planted on purpose, and honest runs pass."""

"""The harness of the benches: models are loaded, sampled, timed and measured here."""

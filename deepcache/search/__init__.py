"""The search for plans: `calibrate` measures a model, `tune` finds a plan for a budget and checks it."""

"""Search for plans: one calibration measures a model, and `deepcache.tune` finds and checks the plan for a budget."""

"""Cost against fidelity: the points of the curves, the aims for them, and the plans that are recommended."""

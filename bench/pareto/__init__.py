"""These modules hold cost against fidelity: the points of the curves, the aims, and the plans that are recommended."""

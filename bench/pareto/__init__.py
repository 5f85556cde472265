"""Cost against fidelity: the points of the curves, what they are held to, and the plans that are recommended."""

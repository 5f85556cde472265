"""Costs: the MACs of steps, plans and a pipeline's other networks, and the page that shows them."""

"""A small diffusion policy of a robot: its environment, its expert, its network, and how it is trained and run."""

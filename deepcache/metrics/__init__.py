"""Metrics, features apart from distances: `distances` is pure maths, `extractors` turns images into features."""

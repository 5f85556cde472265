"""Records, published numbers, tables and the pytest plugin."""

"""Records, their tables, figures and reports, the gate, and the pytest plugin that makes them."""

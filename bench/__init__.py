"""Each `test_*.py` in this folder is an experiment: a table or figure of the paper, or beyond the paper."""

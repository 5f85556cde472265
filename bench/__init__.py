"""The experiments: a file a table or figure of the paper, and those beyond it."""

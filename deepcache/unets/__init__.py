"""U-Nets: where one can be cut, and its full and its shallow step."""

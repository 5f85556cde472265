"""U-Nets: where a U-Net can be cut, its full and its shallow step, and its structure without weights."""

"""The cache: which steps of a generation are full, what they leave behind, and how a U-Net's calls are answered."""

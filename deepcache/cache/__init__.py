"""The cache: find the generation and the step of each U-Net call, and answer the call by a full or a shallow step."""

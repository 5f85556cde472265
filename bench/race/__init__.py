"""The race: the speed of a U-Net uncached, by the older package, and by this library."""

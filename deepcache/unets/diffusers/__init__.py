"""The family of diffusers' U-Nets: six classes whose `forward` goes down and up through blocks of known types."""

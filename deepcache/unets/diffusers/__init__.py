"""The U-Nets of diffusers: six classes whose `forward` goes down and up through blocks of known types."""

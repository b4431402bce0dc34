"""What a mask did to its latents, and the removal of channels that it closed."""

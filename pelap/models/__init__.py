"""The networks of this project, and their assembly into one latent diffusion model."""

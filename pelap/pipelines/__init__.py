"""A stranger's diffusers pipeline as a function from noise to latents; folders of pipelines and models."""

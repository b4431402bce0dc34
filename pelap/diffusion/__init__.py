"""From noise to latents and back: schedule, loss, sampler, and the denoiser that scoring looks at."""

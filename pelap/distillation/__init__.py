"""Bringing a pruned denoiser back, with the dense one as teacher."""

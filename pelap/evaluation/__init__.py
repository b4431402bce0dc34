"""Quality: Frechet distances and what stands beside them."""

"""The training loop, its checkpoints, and PeLAP-A's joint objective."""

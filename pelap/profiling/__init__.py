"""Cost: time, multiply-accumulates, memory."""

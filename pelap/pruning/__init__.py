"""From scores to a plan: which operators to remove, for a time or parameter budget."""

"""How much each operator matters: LD-Pruner's score, its statistics, and what it is compared with."""

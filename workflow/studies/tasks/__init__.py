"""The tasks: what pruning saved and cost in each, over seeds, beside LD-Pruner's own figures."""

ROOT, TARGET = "results/tasks", "all_tasks"
NEEDS = ("metrics", "differences", "prune_result", "evaluate_protocol")
"""Files of a finished cell, by their names in `RunPaths`."""
FILES = {"tasks.csv": None, "cells.csv": None, "tasks.md": "tasks", "tasks.png": "tasks"}
"""What is written, and the caption of what stands in Snakemake's report."""
CATEGORY = "Tasks"

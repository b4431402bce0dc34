"""The study of ways to choose operators: what each costs at equal measured time, and who knew it before."""

ROOT, TARGET = "results/choosing", "choosing"
NEEDS = ("scores", "prune_result", "distill_result", "metrics", "budget", "evaluate_protocol")
"""Files of a finished cell, by their names in `RunPaths`."""
TABLES = ("plans", "methods", "additivity", "prediction", "rivals", "debiased")
FIGURES = ("threshold", "methods", "additivity", "prediction")
FILES = {f"{name}.csv": None for name in TABLES} | {f"{name}.png": "choosing" for name in FIGURES}
"""What is written, and the caption of what stands in Snakemake's report."""
CATEGORY = "Ways to choose"

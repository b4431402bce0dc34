"""A sweep: every metric of every model over seeds, and quality at equal time."""

ROOT, TARGET = "results/sweep", "all_seeds"
NEEDS = ("metrics",)  # files of a finished cell, by their names in `RunPaths`
FILES = {"summary.csv": "summary", "summary.png": "summary", "budget.csv": None, "budget.png": "budget"}
"""What is written, and the caption of what stands in Snakemake's report."""
CATEGORY = "Summary"

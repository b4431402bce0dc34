"""The collapse study: what closes a mask, and what keeps it open, over seeds."""

ROOT, TARGET = "results/collapse_study", "collapse_study"
NEEDS = ("collapse_table", "metrics")  # files of a finished cell, by their names in `RunPaths`
FILES = {"summary.csv": "study", "cells.csv": None, "summary.png": "study"}
"""What is written, and the caption of what stands in Snakemake's report."""
CATEGORY = "Collapse study"

"""The paper at full scale: every metric over seeds, beside the paper's own figures."""

FILES = {
    "table.csv": None,
    "table.md": "paper",
    "cells.csv": None,
    "protocol.json": None,
    "paper.tar.xz": None,
}
"""What is written beside `figures/`, and the caption of what stands in Snakemake's report."""
CATEGORY = "The paper"

"""Grids of data sets and seeds: `snakemake --cores 4 all_seeds` -> results/sweep.

Every cell runs the eight stages of the command line; DVC's results/default is left alone.
"""

from snakemake.utils import min_version

min_version("9.18")


configfile: "workflow/config.yaml"


report: "workflow/report/workflow.rst"


container: "docker-daemon://pelap:0.1.0"


include: "workflow/rules/common.smk"


rule all_seeds:
    input:
        SUMMARY,
        [cell_files(CELL.report_page), cell_files(CELL.report_table)],


include: "workflow/rules/cell.smk"
include: "workflow/rules/summary.smk"

"""Grids of data sets and seeds.

`snakemake --cores 4 all_seeds` -> results/sweep: every cell runs the eight stages of the command line.
`snakemake --cores 4 pruning_study` -> results/pruning_study: the same for the parameters that figures come from.
`snakemake --cores 4 choosing` -> results/choosing: one denoiser cut in many ways, to tell which choice of
operators costs least quality.
`snakemake --cores 4 collapse_study` -> results/collapse_study: many variants, trained, analysed and
evaluated, to tell what makes latents collapse.
`snakemake --cores 4 all_tasks` -> results/tasks: the tasks of workflow/config.yaml, each of the eight stages
with parameters and data of its own. DVC's results/default is left alone.
"""

from snakemake.utils import min_version

min_version("9.18")


configfile: "workflow/config.yaml"


report: "workflow/report/workflow.rst"


container: "docker-daemon://pelap:0.1.0"


include: "workflow/rules/common.smk"


rule all_seeds:
    input:
        summary_files("sweep"),
        cell_files("sweep", CELL.report_page, CELL.report_table),


rule pruning_study:
    input:
        summary_files("pruning_study"),
        cell_files("pruning_study", CELL.report_page, CELL.report_table),


rule collapse_study:
    input:
        STUDY.summary,
        STUDY.cells,
        STUDY.figure,


rule all_tasks:
    input:
        TASKS.files,
        task_files(CELL.report_page, CELL.report_table),


include: "workflow/rules/cell.smk"
include: "workflow/rules/summary.smk"

"""Grids of data sets and seeds.

`snakemake --cores 4 all_seeds` -> results/sweep: every cell runs the eight stages of the command line.
`snakemake --cores 4 pruning_study` -> results/pruning_study: the same for the parameters that figures come from.
`snakemake --cores 4 choosing` -> results/choosing: one denoiser cut in many ways, to tell which choice of
operators costs least quality.
`snakemake --cores 4 collapse_study` -> results/collapse_study: many variants, trained, analysed and
evaluated, to tell what makes latents collapse.
`snakemake --cores 4 all_tasks` -> results/tasks: the tasks of workflow/config.yaml, each of the eight stages
with parameters and data of its own.
`snakemake --cores 4 paper` -> results/paper: the study of workflow/paper.yaml, as `pelap paper` runs it in one
process. DVC's results/default is left alone.
"""

from snakemake.utils import min_version

min_version("9.18")


configfile: "workflow/config.yaml"


report: "workflow/report/workflow.rst"


container: "docker-daemon://pelap:0.1.0"


include: "workflow/rules/common.smk"


for NAME, (FOLDER, STUDY, SHOWN) in {
    "all_seeds": ("sweep", seeds, ["report_page", "report_table"]),
    "pruning_study": ("pruning_study", seeds, ["report_page", "report_table"]),
    "collapse_study": ("collapse_study", collapse, []),
    "all_tasks": ("tasks", tasks, ["report_page", "report_table"]),
}.items():

    rule:
        name:
            NAME
        input:
            [grid.RESULTS / FOLDER / name for name in STUDY.FILES],
            [getattr(RunPaths(path), name) for path in cell_folders(FOLDER) for name in SHOWN],


include: "workflow/rules/cell.smk"
include: "workflow/rules/summary.smk"

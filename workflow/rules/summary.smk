"""What the cells of a study say together: a rule each, made by one loop."""

SUMMARIES = {
    "compare": ("{grid}", seeds),
    "study": ("collapse_study", collapse),
    "choosing": ("choosing", choosing),
    "tasks": ("tasks", tasks),
    "paper": ("paper", paper),
}
"""Commands with the folder of their cells, and the study."""
ROOT_OPTIONS = {"compare": "--sweep", "paper": f"--study {config['paper']} --minutes 0 --root"}
"""What stands before the root, where that is not --root."""


def folder_of(name, wildcards):
    return wildcards.grid if name == "compare" else SUMMARIES[name][0]


def cells_asked(name):
    """The cells of a summary, as it is told which to take: from the folder that holds them."""

    def of(wildcards):
        folder = folder_of(name, wildcards)
        return [str(path.relative_to(grid.RESULTS / folder)) for path in cell_folders(folder)]

    return of


def summed_files(name):
    """What a summary is made from: of the paper the parameters that every job of its cells leaves."""

    def of(wildcards):
        if name == "paper":
            return [file for each in GRIDS for file in grid.noted_jobs(GRIDS[each], grid.RESULTS / each)]
        cells, needs = cell_folders(folder_of(name, wildcards)), SUMMARIES[name][1].NEEDS
        return [str(getattr(RunPaths(cell), need)) for cell in cells for need in needs]

    return of


def parts_of(name):
    study = SUMMARIES[name][1].__name__.rpartition(".")[2]
    return lambda wildcards: grid.summary_parts(study, cells_asked(name)(wildcards))


def shown(folder, study):
    """What a summary writes; with a caption it stands in Snakemake's report."""
    found = []
    for name, caption in study.FILES.items():
        file, text = grid.RESULTS / folder / name, f"../report/{caption}.rst"
        found.append(report(file, caption=text, category=study.CATEGORY) if caption else file)
    return found


for NAME, (FOLDER, STUDY) in SUMMARIES.items():
    ABOVE = grid.RESULTS / FOLDER

    rule:
        name:
            NAME
        input:
            summed_files(NAME),
            made_of=made_of(ABOVE / "params" / NAME, parts_of(NAME)),
        output:
            shown(FOLDER, STUDY),
        log:
            ABOVE / "logs" / f"{NAME}.log",
        benchmark:
            ABOVE / "benchmarks" / f"{NAME}.tsv"
        params:
            made_of=noted(ABOVE / "params" / NAME),
            command=f"{NAME} {ROOT_OPTIONS.get(NAME, '--root')}",
            root=subpath(output[0], parent=True),
            cells=[] if NAME == "paper" else cells_asked(NAME),
            option=[] if NAME == "paper" else "--cells",
        threads: 1
        resources:
            mem_mb=2000,
            runtime=15,
        shell:
            "pelap {params.command} {params.root} {params.option} {params.cells} > {log} 2>&1"

"""What the cells of a study say together: a rule each, made by one loop."""

SUMMARIES = {
    "compare": ("{grid}", seeds, ["pelap", "compare", "--sweep"]),
    "study": ("collapse_study", collapse, ["pelap", "study", "--root"]),
    "choosing": ("choosing", choosing, ["pelap", "choosing", "--root"]),
    "tasks": ("tasks", tasks, ["pelap", "tasks", "--root"]),
    "paper": ("paper", paper, ["pelap", "paper", "--study", config["paper"], "--minutes", "0", "--root"]),
}
"""The folder of the cells, the study, and the command, which takes the root."""
for NAME in config.get("studies", {}):  # of the user's own, by the names of their folders
    STUDY = import_module(f"workflow.studies.{NAME}")
    SUMMARIES[NAME] = (NAME, STUDY, ["python", "-m", STUDY.__name__, "--root"])


def folder_of(name, wildcards):
    return wildcards.grid if name == "compare" else SUMMARIES[name][0]


def cells_asked(name):
    """The cells of a summary, as it is told which to take; the paper's study file says that."""

    def of(wildcards):
        folder = folder_of(name, wildcards)
        cells = [str(path.relative_to(grid.RESULTS / folder)) for path in cell_folders(folder)]
        return [] if name == "paper" else ["--cells", *cells]

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
    return lambda wildcards: grid.summary_parts(SUMMARIES[name][1].__name__, cells_asked(name)(wildcards))


def shown(folder, study):
    """What a summary writes; with a caption it stands in Snakemake's report."""
    found = []
    for name, caption in study.FILES.items():
        file, text = grid.RESULTS / folder / name, f"../report/{caption}.rst"
        found.append(report(file, caption=text, category=study.CATEGORY) if caption else file)
    return found


for NAME, (FOLDER, STUDY, COMMAND) in SUMMARIES.items():
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
            command=COMMAND,
            root=subpath(output[0], parent=True),
            cells=cells_asked(NAME),
        threads: 1
        resources:
            mem_mb=2000,
            runtime=15,
        shell:
            "{params.command:q} {params.root:q} {params.cells:q} > {log:q} 2>&1"

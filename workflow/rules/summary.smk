"""What the cells of a study say together: a rule each, made by one loop."""

SUMMARIES = {
    "compare": ("{grid}", seeds, "--sweep {params.root} --cells {params.cells}"),
    "study": ("collapse_study", collapse, "--root {params.root} --cells {params.cells}"),
    "choosing": ("choosing", choosing, "--root {params.root} --cells {params.cells}"),
    "tasks": ("tasks", tasks, "--root {params.root} --cells {params.cells}"),
    "paper": ("paper", paper, f"--study {config['paper']} --root {{params.root}} --minutes 0"),
}
"""Commands with the folder of their cells, the study, and their options."""


def summed(folder, wildcards):
    return wildcards.grid if folder == "{grid}" else folder


def cells_asked(folder):
    """The cells of a summary, as it is told which to take: from the folder that holds them."""
    return lambda wildcards: [
        str(path.relative_to(grid.RESULTS / summed(folder, wildcards)))
        for path in cell_folders(summed(folder, wildcards))
    ]


def summed_files(folder, study):
    """What a summary is made from."""
    if study is paper:
        return finished_parts(folder)
    return lambda wildcards: cell_files(summed(folder, wildcards), study.NEEDS)


def parts_of_summary(folder, study):
    name = study.__name__.rpartition(".")[2]
    return lambda wildcards: grid.summary_parts(name, cells_asked(folder)(wildcards))


def shown(folder, study):
    """What a summary writes; with a caption it stands in Snakemake's report."""
    found = []
    for name, caption in study.FILES.items():
        file, text = grid.RESULTS / folder / name, f"../report/{caption}.rst"
        found.append(report(file, caption=text, category=study.CATEGORY) if caption else file)
    return found


for NAME, (FOLDER, STUDY, OPTIONS) in SUMMARIES.items():
    ABOVE = grid.RESULTS / FOLDER

    rule:
        name:
            NAME
        input:
            summed_files(FOLDER, STUDY),
            made_of=made_of(ABOVE / "params" / NAME, parts_of_summary(FOLDER, STUDY)),
        output:
            shown(FOLDER, STUDY),
        log:
            ABOVE / "logs" / f"{NAME}.log",
        benchmark:
            ABOVE / "benchmarks" / f"{NAME}.tsv"
        params:
            made_of=noted(ABOVE / "params" / NAME),
            root=subpath(output[0], parent=True),
            cells=cells_asked(FOLDER),
        threads: 1
        resources:
            mem_mb=2000,
            runtime=15,
        shell:
            f"pelap {NAME} {OPTIONS} > {{log}} 2>&1"

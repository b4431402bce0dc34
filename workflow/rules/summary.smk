"""What the cells say together."""

STUDY_CELLS = cells_asked("collapse_study")
CHOOSING_CELLS = cells_asked("choosing")
TASKS_CELLS = cells_asked(*(f"tasks/{name}" for name in config["tasks"]))


rule compare:
    input:
        lambda wildcards: cell_files(wildcards.grid, CELL.metrics, CELL.budget),
        made_of=lambda wildcards: summary_made_of(
            "compare", "seeds", RESULTS / wildcards.grid, cells_asked(wildcards.grid)
        ),
    output:
        report(SUMMARY.summary, caption="../report/summary.rst", category="Summary"),
        report(SUMMARY.figure, caption="../report/summary.rst", category="Summary"),
        SUMMARY.budget,
        report(SUMMARY.budget_figure, caption="../report/budget.rst", category="Summary"),
    log:
        SUMMARY.root / "logs" / "compare.log",
    benchmark:
        SUMMARY.root / "benchmarks" / "compare.tsv"
    params:
        made_of=noted(SUMMARY.root / "params" / "compare"),
        sweep=subpath(output[0], parent=True),
        cells=lambda wildcards: cells_asked(wildcards.grid),
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    shell:
        "pelap compare --sweep {params.sweep} --cells {params.cells} > {log} 2>&1"


rule study:
    input:
        cell_files("collapse_study", CELL.collapse_table, CELL.metrics),
        made_of=lambda wildcards: summary_made_of("study", "collapse", STUDY.root, STUDY_CELLS),
    output:
        report(STUDY.summary, caption="../report/study.rst", category="Collapse study"),
        STUDY.cells,
        report(STUDY.figure, caption="../report/study.rst", category="Collapse study"),
    log:
        STUDY.root / "logs" / "study.log",
    benchmark:
        STUDY.root / "benchmarks" / "study.tsv"
    params:
        made_of=noted(STUDY.root / "params" / "study"),
        root=subpath(output[0], parent=True),
        cells=STUDY_CELLS,
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    shell:
        "pelap study --root {params.root} --cells {params.cells} > {log} 2>&1"


rule choosing:
    input:
        cell_files(
            "choosing",
            CELL.scores,
            CELL.plans,
            CELL.prune_result,
            CELL.distill_result,
            CELL.metrics,
            CELL.budget,
            CELL.differences,
            CELL.evaluate_protocol,
        ),
        made_of=lambda wildcards: summary_made_of("choosing", "choosing", CHOOSING.root, CHOOSING_CELLS),
    output:
        CHOOSING.plans,
        CHOOSING.methods,
        CHOOSING.additivity,
        CHOOSING.prediction,
        CHOOSING.rivals,
        report(CHOOSING.threshold_figure, caption="../report/choosing.rst", category="Ways to choose"),
        report(CHOOSING.methods_figure, caption="../report/choosing.rst", category="Ways to choose"),
        report(CHOOSING.additivity_figure, caption="../report/choosing.rst", category="Ways to choose"),
        report(CHOOSING.prediction_figure, caption="../report/choosing.rst", category="Ways to choose"),
    log:
        CHOOSING.root / "logs" / "choosing.log",
    benchmark:
        CHOOSING.root / "benchmarks" / "choosing.tsv"
    params:
        made_of=noted(CHOOSING.root / "params" / "choosing"),
        root=subpath(output[0], parent=True),
        cells=CHOOSING_CELLS,
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    shell:
        "pelap choosing --root {params.root} --cells {params.cells} > {log} 2>&1"


rule tasks:
    input:
        task_files(
            CELL.metrics,
            CELL.differences,
            CELL.evaluate_protocol,
            CELL.prune_result,
        ),
        made_of=lambda wildcards: summary_made_of("tasks", "tasks", TASKS.root, TASKS_CELLS),
    output:
        TASKS.summary,
        TASKS.cells,
        report(TASKS.page, caption="../report/tasks.rst", category="Tasks"),
        report(TASKS.figure, caption="../report/tasks.rst", category="Tasks"),
    log:
        TASKS.root / "logs" / "tasks.log",
    benchmark:
        TASKS.root / "benchmarks" / "tasks.tsv"
    params:
        made_of=noted(TASKS.root / "params" / "tasks"),
        root=subpath(output[0], parent=True),
        cells=TASKS_CELLS,
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    shell:
        "pelap tasks --root {params.root} --cells {params.cells} > {log} 2>&1"

"""What the cells say together."""


rule compare:
    input:
        lambda wildcards: cell_files(wildcards.grid, CELL.metrics, CELL.budget),
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
        sweep=subpath(output[0], parent=True),
        code=code("pelap/stages/compare.py", "pelap/stages/cells.py", "pelap/report"),
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    shell:
        "pelap compare --sweep {params.sweep} > {log} 2>&1"


rule study:
    input:
        cell_files("collapse_study", CELL.collapse_table, CELL.metrics),
    output:
        report(STUDY.summary, caption="../report/study.rst", category="Collapse study"),
        STUDY.cells,
        report(STUDY.figure, caption="../report/study.rst", category="Collapse study"),
    log:
        STUDY.root / "logs" / "study.log",
    benchmark:
        STUDY.root / "benchmarks" / "study.tsv"
    params:
        root=subpath(output[0], parent=True),
        code=code("pelap/stages/study.py", "pelap/stages/cells.py", *(f"pelap/report/{name}.py" for name in ("rows", "study", "style"))),
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    shell:
        "pelap study --root {params.root} > {log} 2>&1"


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
        root=subpath(output[0], parent=True),
        code=code("pelap/stages/choosing.py", "pelap/stages/cells.py", "pelap/report"),
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    shell:
        "pelap choosing --root {params.root} > {log} 2>&1"


rule tasks:
    input:
        task_files(
            CELL.metrics,
            CELL.differences,
            CELL.evaluate_protocol,
            CELL.prune_result,
        ),
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
        root=subpath(output[0], parent=True),
        code=code("pelap/stages/tasks.py", "pelap/stages/cells.py", "pelap/report"),
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    shell:
        "pelap tasks --root {params.root} > {log} 2>&1"

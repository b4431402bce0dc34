"""What the cells say together."""


rule compare:
    input:
        cell_files(CELL.metrics),
    output:
        report(SUMMARY[0], caption="../report/summary.rst", category="Summary"),
        report(SUMMARY[1], caption="../report/summary.rst", category="Summary"),
    log:
        SWEEP / "logs" / "compare.log",
    benchmark:
        SWEEP / "benchmarks" / "compare.tsv"
    params:
        sweep=subpath(output[0], parent=True),
        code=code("pelap/stages/compare.py", "pelap/report/sweep.py", "pelap/report/style.py"),
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    shell:
        "pelap compare --sweep {params.sweep} > {log} 2>&1"

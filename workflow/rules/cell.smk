"""One cell of a grid: the eight stages, under the names that they have everywhere."""

SAMPLES = CELL.samples("").parent
RECONSTRUCTIONS = CELL.reconstructions("").parent


rule download:
    input:
        made_of=made_of("download", DATA / "{place}" / "params" / "{dataset}.yaml"),
    output:
        data=packed_dataset(DATA / "{place}", "{dataset}"),
        parameters=DATA / "{place}" / "params" / "{dataset}.yaml",
    log:
        DATA / "{place}" / "logs" / "{dataset}.log",
    benchmark:
        DATA / "{place}" / "benchmarks" / "{dataset}.tsv"
    params:
        made_of=noted(DATA / "{place}" / "params" / "{dataset}.yaml"),
        folder=subpath(output.data, parent=True),
        archives=ARCHIVES,
        parameters=resolved("download"),
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
        torch_threads=torch_threads,
    shell:
        PREPARE
        + 'export PELAP_DATA_DIR="${{PELAP_DATA_DIR:-{params.archives}}}"; '
        "pelap download --run {params.folder} --params {output.parameters}"
        " --data {params.folder} > {log} 2>&1"


rule train:
    input:
        data=packed,
        made_of=made_of("train", parameter_file("train-{variant}")),
    output:
        directory(MODEL.model),
        MODEL.history,
        MODEL.validation,
        MODEL.reconstructions,
        MODEL.samples,
        parameters=parameter_file("train-{variant}"),
    log:
        log_file("train-{variant}"),
    benchmark:
        benchmark_file("train-{variant}")
    params:
        made_of=noted(parameter_file("train-{variant}")),
        run=subpath(output.parameters, ancestor=2),
        parameters=resolved("train"),
    threads: 2
    resources:
        gpu=1,
        mem_mb=8000,
        runtime=720,
        torch_threads=torch_threads,
    shell:
        PREPARE
        + "pelap train --variant {wildcards.variant} --run {params.run} --params {output.parameters}"
        ' --data "$(dirname {input.data})" > {log} 2>&1'


rule collapse:
    input:
        data=packed,
        models=every_variant("model"),
        made_of=made_of("collapse", parameter_file("collapse")),
    output:
        CELL.collapse_tables.values(),
        CELL.collapse_metrics,
        parameters=parameter_file("collapse"),
    log:
        log_file("collapse"),
    benchmark:
        benchmark_file("collapse")
    params:
        made_of=noted(parameter_file("collapse")),
        run=subpath(output.parameters, ancestor=2),
        parameters=resolved("collapse"),
    threads: 2
    resources:
        gpu=1,
        mem_mb=8000,
        runtime=60,
        torch_threads=torch_threads,
    shell:
        PREPARE
        + "pelap collapse --run {params.run} --params {output.parameters}"
        ' --data "$(dirname {input.data})" > {log} 2>&1'


rule score:
    input:
        model=scored_model,
        made_of=made_of("score", parameter_file("score")),
    output:
        CELL.scores,
        CELL.score_protocol,
        parameters=parameter_file("score"),
    log:
        log_file("score"),
    benchmark:
        benchmark_file("score")
    params:
        made_of=noted(parameter_file("score")),
        run=subpath(output.parameters, ancestor=2),
        parameters=resolved("score"),
    threads: all_cores
    resources:
        gpu=1,
        mem_mb=8000,
        runtime=240,
        torch_threads=torch_threads,
    shell:
        PREPARE
        + "pelap score --run {params.run} --params {output.parameters}"
        " > {log} 2>&1"


rule prune:
    input:
        model=scored_model,
        scores=CELL.scores,
        protocol=CELL.score_protocol,
        made_of=made_of("prune", parameter_file("prune")),
    output:
        CELL.prune_result,
        CELL.changes,
        directory(CELL.plans),
        directory(CELL.pruned_models),
        parameters=parameter_file("prune"),
    log:
        log_file("prune"),
    benchmark:
        benchmark_file("prune")
    params:
        made_of=noted(parameter_file("prune")),
        run=subpath(output.parameters, ancestor=2),
        parameters=resolved("prune"),
    threads: all_cores
    resources:
        gpu=1,
        mem_mb=8000,
        runtime=240,
        torch_threads=torch_threads,
    shell:
        PREPARE
        + "pelap prune --run {params.run} --params {output.parameters}"
        " > {log} 2>&1"


rule distill:
    input:
        data=packed,
        model=scored_model,
        protocol=CELL.score_protocol,
        plans=CELL.prune_result,
        pruned=CELL.pruned_models,
        made_of=made_of("distill", parameter_file("distill")),
    output:
        CELL.distill_history,
        CELL.distill_validation,
        CELL.distill_result,
        directory(CELL.distilled_models),
        parameters=parameter_file("distill"),
    log:
        log_file("distill"),
    benchmark:
        benchmark_file("distill")
    params:
        made_of=noted(parameter_file("distill")),
        run=subpath(output.parameters, ancestor=2),
        parameters=resolved("distill"),
    threads: 2
    resources:
        gpu=1,
        mem_mb=8000,
        runtime=720,
        torch_threads=torch_threads,
    shell:
        PREPARE
        + "pelap distill --run {params.run} --params {output.parameters}"
        ' --data "$(dirname {input.data})" > {log} 2>&1'


rule evaluate:
    input:
        data=packed,
        models=every_variant("model"),
        shrunk=shrunk_models,
        made_of=made_of("evaluate", parameter_file("evaluate")),
    output:
        CELL.metrics,
        CELL.budget,
        CELL.differences,
        CELL.latencies,
        CELL.evaluate_protocol,
        directory(SAMPLES),
        directory(RECONSTRUCTIONS),
        parameters=parameter_file("evaluate"),
    log:
        log_file("evaluate"),
    benchmark:
        benchmark_file("evaluate")
    params:
        made_of=noted(parameter_file("evaluate")),
        run=subpath(output.parameters, ancestor=2),
        parameters=resolved("evaluate"),
    threads: evaluate_cores
    resources:
        gpu=1,
        mem_mb=8000,
        runtime=240,
        torch_threads=torch_threads,
    shell:
        PREPARE
        + "pelap evaluate --run {params.run} --params {output.parameters}"
        ' --data "$(dirname {input.data})" > {log} 2>&1'


rule report:
    input:
        every_variant("history"),
        every_variant("validation"),
        CELL.collapse_table,
        CELL.masks_per_class,
        CELL.collapse_epochs,
        CELL.collapse_timesteps,
        CELL.scores,
        CELL.score_protocol,
        CELL.prune_result,
        CELL.changes,
        CELL.distill_history,
        CELL.distill_validation,
        CELL.distill_result,
        CELL.metrics,
        CELL.budget,
        CELL.differences,
        CELL.latencies,
        CELL.evaluate_protocol,
        SAMPLES,
        RECONSTRUCTIONS,
        made_of=made_of("report", parameter_file("report")),
    output:
        CELL.report_page,
        CELL.report_table,
        report(
            CELL.report_figure,
            caption="../report/overview.rst",
            category="Cells",
            labels={"data set": "{dataset}", "seed": "{seed}"},
        ),
        parameters=parameter_file("report"),
    log:
        log_file("report"),
    benchmark:
        benchmark_file("report")
    params:
        made_of=noted(parameter_file("report")),
        run=subpath(output.parameters, ancestor=2),
        parameters=resolved("report"),
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
        torch_threads=torch_threads,
    shell:
        PREPARE
        + "pelap report --run {params.run} --params {output.parameters}"
        " > {log} 2>&1"

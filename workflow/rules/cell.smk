"""One cell of a grid: the eight stages, under the names that they have everywhere, made by one loop."""

from typing import NamedTuple

MODEL = CELL.train("{variant}")
PICTURES = [CELL.samples("").parent, CELL.reconstructions("").parent]
LABELS = {"data set": "{dataset}", "seed": "{seed}"}
PAGE = report(CELL.report_figure, caption="../report/overview.rst", category="Cells", labels=LABELS)
TABLES = {
    "collapse": [*CELL.collapse_tables.values(), CELL.collapse_metrics],
    "score": [CELL.scores, CELL.score_protocol],
    "prune": [CELL.prune_result, CELL.changes],
    "distill": [CELL.distill_history, CELL.distill_validation, CELL.distill_result],
    "evaluate": [CELL.metrics, CELL.budget, CELL.differences, CELL.latencies, CELL.evaluate_protocol],
}
for STAGE, LEFT in TABLES.items():
    LEFT.append(CELL.stage(STAGE) / DIGESTS)


PACKED, MODELS, SCORED = of_cell("packed"), of_cell("trained", "model"), of_cell("scored_model")
PLANS = [CELL.score_protocol, CELL.prune_result, CELL.pruned_models]


class Stage(NamedTuple):
    """A stage as a rule."""

    input: dict
    output: list
    runtime: int
    threads: object = 2
    folders: list = []
    gpu: bool = True
    mem_mb: int = 8000
    job: str = ""
    """Its name among the jobs of a cell, unless that of the stage."""


STAGES = {
    "download": Stage(
        {}, [packed_dataset(PLACE, "{dataset}")], 60, threads=1, gpu=False, mem_mb=4000, job="{dataset}"
    ),
    "train": Stage(
        {"data": PACKED},
        [MODEL.history, MODEL.validation, MODEL.root / DIGESTS, MODEL.reconstructions, MODEL.samples],
        folders=[MODEL.model],
        runtime=720,
        job="train-{variant}",
    ),
    "collapse": Stage({"data": PACKED, "models": MODELS}, TABLES["collapse"], runtime=60),
    "score": Stage({"model": SCORED}, TABLES["score"], runtime=240, threads=all_cores),
    "prune": Stage(
        {"model": SCORED, "scores": TABLES["score"]},
        TABLES["prune"],
        folders=[CELL.plans, CELL.pruned_models],
        runtime=240,
        threads=all_cores,
    ),
    "distill": Stage(
        {"data": PACKED, "model": SCORED, "pruned": PLANS},
        TABLES["distill"],
        folders=[CELL.distilled_models],
        runtime=720,
    ),
    "evaluate": Stage(
        {"data": PACKED, "models": MODELS, "shrunk": of_cell("shrunk_models")},
        TABLES["evaluate"],
        folders=PICTURES,
        runtime=240,
        threads=evaluate_cores,
    ),
    "report": Stage(
        {
            "histories": of_cell("trained", "history"),
            "validations": of_cell("trained", "validation"),
            "tables": [*sum(TABLES.values(), []), *PICTURES],
        },
        [CELL.report_page, CELL.report_table, PAGE],
        runtime=15,
        threads=1,
        gpu=False,
        mem_mb=2000,
    ),
}


for NAME, STAGE in STAGES.items():
    FOLDER, JOB = PLACE if NAME == "download" else CELL.root, STAGE.job or NAME
    PARAMETERS = FOLDER / "params" / f"{JOB}.yaml"

    rule:
        name:
            NAME
        input:
            **STAGE.input,
            made_of=made_of(PARAMETERS, of_cell("parts", NAME)),
        output:
            *STAGE.output,
            *map(directory, STAGE.folders),
            parameters=PARAMETERS,
        log:
            FOLDER / "logs" / f"{JOB}.log",
        benchmark:
            FOLDER / "benchmarks" / f"{JOB}.tsv"
        params:
            made_of=noted(PARAMETERS),
            run=subpath(output.parameters, ancestor=2),
            stage=NAME,
            options=of_cell("options", NAME),
            parameters=of_cell("parameters", NAME),
        threads: STAGE.threads
        resources:
            mem_mb=STAGE.mem_mb,
            runtime=STAGE.runtime,
            torch_threads=lambda wildcards, threads: grid.torch_threads(threads, given_cores()),
            **({"gpu": 1} if STAGE.gpu else {}),
        shell:
            PREPARE
            + "pelap {params.stage} --run {params.run:q} --params {output.parameters:q} {params.options:q} > {log:q} 2>&1"

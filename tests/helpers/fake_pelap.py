"""Stands in for the `pelap` command where only the wiring is tested: makes what a stage declares.

Contents depend on the parameters that the stage was given, and the call is noted in $PELAP_CALLS.
It is started dozens of times, hence the light imports.
"""

import argparse
import os
import re
from pathlib import Path

from pelap.core.paths import DIGESTS, RunPaths, input_file, packed_dataset
from workflow.studies import choosing, collapse, paper, seeds, tasks

SUMMARIES = {"compare": seeds, "study": collapse, "choosing": choosing, "tasks": tasks, "paper": paper}


def outputs(stage: str, run: RunPaths, data: Path, variant: str, dataset: str) -> list[Path]:
    """The files that a stage leaves; of a folder, one file in it."""
    if stage == "download":
        return [packed_dataset(data, dataset)]
    if stage == "train":
        files = run.train(variant)
        csvs = [files.history, files.validation, files.root / DIGESTS]
        return [files.model / "config.json", *csvs, files.reconstructions, files.samples]
    return {
        "collapse": [*run.collapse_tables.values(), run.collapse_metrics, run.collapse / DIGESTS],
        "score": [run.scores, run.score_protocol, run.score / DIGESTS],
        "prune": [
            *(run.prune_result, run.changes, run.prune / DIGESTS),
            *(run.plan("1"), run.pruned_model("1") / "config.json"),
        ],
        "distill": [
            run.distill_history,
            run.distill_validation,
            run.distill_result,
            run.distill / DIGESTS,
            run.distilled_model("distilled-1") / "config.json",
        ],
        "evaluate": [
            run.metrics,
            run.budget,
            run.differences,
            run.latencies,
            run.evaluate_protocol,
            run.evaluate / DIGESTS,
            run.samples("pelap"),
            run.reconstructions("pelap"),
        ],
        "report": [run.report_page, run.report_figure, run.report_table],
    }[stage]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("--run", type=Path, default=Path("results/default"))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--sweep", "--root", dest="root", type=Path)
    parser.add_argument("--study")
    parser.add_argument("--minutes")
    parser.add_argument("--variant", default="")
    parser.add_argument("--cells", nargs="+", default=[])
    args = parser.parse_args()
    if args.stage == "inputs":  # always run, and no stage
        for stage in ("download", "train", "evaluate"):
            file = input_file(args.data, stage)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(os.environ.get("PELAP_INPUTS", "as they were"))
        return
    with Path(os.environ["PELAP_CALLS"]).open("a") as calls:
        print(f"{args.stage}@{args.variant}" if args.variant else args.stage, file=calls)
    if args.stage in SUMMARIES:
        files, content = [args.root / name for name in SUMMARIES[args.stage].FILES], " ".join(args.cells)
    else:
        content = args.params.read_text()
        dataset = re.search(r'^ *"?dataset"?: "?([a-z0-9_-]+)', content, re.MULTILINE)
        named = dataset[1] if dataset else ""
        files = outputs(args.stage, RunPaths(args.run), args.data, args.variant, named)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"pelap": {"number": 1}}' if file.name == "metrics.json" else content)


if __name__ == "__main__":
    main()

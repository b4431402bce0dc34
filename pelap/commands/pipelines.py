"""What stages do, done to a user's diffusers pipelines: folders and files instead of a run."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from pelap.api.models import opened
from pelap.api.quality import compare
from pelap.config import DistillParams, LossWeights, Params
from pelap.config.upgrade import renamed_scores
from pelap.core import files
from pelap.core.device import protocol_beside
from pelap.core.errors import ConfigError, ModelError
from pelap.core.keys import ResumeState, code_of, key
from pelap.core.paths import REAL_ROW, packed_dataset, reference_cache
from pelap.core.tables import read_table, write_table
from pelap.data.dataset import load_dataset
from pelap.data.entries import read_prompts
from pelap.distillation import pipeline_distillation as distillation
from pelap.pipelines.latent import pipeline_denoiser
from pelap.pipelines.pipeline_io import load_pipeline, open_pipeline, pipeline_plan, save_pipeline
from pelap.pruning.pruner import Pruner
from pelap.report import protocol as protocol_of
from pelap.report.tables import rich_table
from pelap.scoring.scorer import Scorer
from pelap.stages import prune, score

CHANGES = "changes.csv"
RESULT = "result.json"  # names in a pruned pipeline's folder


def score_pipeline(
    params: Params,
    folder: Path,
    out: Path,
    device: torch.device,
    prompts: Path | None = None,
    save_latents: Path | None = None,
) -> None:
    """Write the table of scores of a diffusers pipeline's denoiser, least first, and its protocol beside it.

    Args:
        params: The sections `seed` and `score` are read; the pipeline keeps its own scheduler.
        folder: The pipeline.
        out: The CSV file; the protocol goes into ``<out without .csv>.protocol.json``.
        device: Where to compute.
        prompts: One prompt a line, for text-to-image.
        save_latents: Write the starting noise and the untouched model's latents here.

    Raises:
        ModelError: Not a pipeline that can be used, or one that gives chance.
        ConfigError: Prompts are missing or out of place.
        DataError: The file of prompts cannot be read.
    """
    with files.exclusive(out):
        pipeline = open_pipeline(folder, params.score.sampler.steps, device, prompts)
        denoiser = pipeline_denoiser(pipeline, folder.name, params.seed, params.score.num_seeds)
        scorer = Scorer(denoiser, params.score, params.seed)
        made_of = key(**scorer.state_parts, code=code_of(__name__))
        state = ResumeState(out.parent, f".{out.name}.resume", made_of)
        scores = score.score(scorer, state, save_latents)
        write_table(out, scores.table, protocol_beside(out), scores.protocol)
        state.drop()
    score.show(scores)
    print(f"scores in {out}")


def prune_pipeline(
    params: Params,
    folder: Path,
    scores_file: Path,
    out: Path,
    device: torch.device,
    prompts: Path | None = None,
    plan_file: Path | None = None,
) -> None:
    """Write a pipeline folder whose denoiser is cut, with the plan and the listing at its top.

    Args:
        params: The section `prune` is read; `seed` and `score` where the scores have no protocol beside them.
        folder: The pipeline.
        scores_file: Its scores, from `score_pipeline`.
        out: A new folder.
        device: Where to compute.
        prompts: One prompt a line, for text-to-image.
        plan_file: Apply this plan instead of making one from the scores.

    Raises:
        ConfigError: `out` holds something, or several amounts are given.
        PlanError: The scores or the plan are another model's, the target is out of reach, or what the plan
            leaves makes latents that are not finite.
        ModelError: The pipeline cannot be used, or is pruned already.
    """
    if pipeline_plan(folder) is not None:
        raise ModelError(
            f"{folder}: is pruned already; prune the dense pipeline with one plan that has all operators"
        )
    files.demand_new(out)
    if plan_file is None and len(params.prune.plans) + params.prune.single_operator_plans > 1:
        names = ", ".join(params.prune.plans)
        raise ConfigError(
            f"prune: asks for several plans ({names}; single_operator_plans: "
            f"{params.prune.single_operator_plans}); ask for one for each --out folder"
        )
    with files.exclusive(out):
        protocol = protocol_beside(scores_file)
        scores = renamed_scores(read_table(scores_file, protocol))
        known = protocol.exists()
        scored, seed = prune.scored_with(protocol) if known else (params.score, params.seed)
        pipeline = open_pipeline(folder, scored.sampler.steps, device, prompts)
        denoiser = pipeline_denoiser(pipeline, folder.name, seed, scored.num_seeds)
        if not known:
            print(f"warning: no {protocol} says what the scores were made with; taken for parameters of now")
        pruner = Pruner(denoiser, scored, seed)
        pruner.demand_own(scores, files.read_mapping(protocol) if known else {}, str(protocol))
        plans = prune.plans(pruner, scores, params.prune, plan_file)
        (pruned,) = pruner.apply_all(plans, scores).values()
        pipeline.denoiser = pruned.network

        def write_more(partial: Path) -> None:
            files.write_csv(partial / CHANGES, pruned.changes)
            files.write_json(partial / RESULT, pruned.result)

        save_pipeline(pipeline.pipe, out, pruned.plan, write_more)
    prune.show(pruned)
    print(f"pruned pipeline in {out}")


def distill_pipeline(
    params: Params, pruned: Path, teacher: Path, data: Path, out: Path, device: torch.device
) -> None:
    """Fine-tune a pruned pipeline's denoiser into a new folder, with its losses beside it.

    ``<out>.history.csv`` holds those of training, ``<out>.validation.csv`` those of test pictures.
    Interrupted, it goes on from the state beside `out` when it is called with the same inputs again.

    Args:
        params: `dataset`, `seed` and the section `distill` are read. The weights of the losses are those of
            the first of its `students` that starts pruned; its `quality` is not looked at.
        pruned: The pruned pipeline.
        teacher: The dense one that it was made from.
        data: Of the packed data sets. The caption of a picture is the name of its class.
        out: New folder.
        device: Where to compute.

    Raises:
        ConfigError: `out` holds something, no student starts pruned, or the step to keep would be chosen by
            Frechet distance, which is not measured here.
        ModelError: A folder is no pipeline that can be used, `pruned` is not pruned, `teacher` is, or is
            another network, or the data do not suit them.
        DataError: The data set is not there or smaller than a batch.
        TrainingError: The loss is not finite.
    """
    weights = _weights(params.distill)
    files.demand_new(out)
    with files.exclusive(out):
        plan = pipeline_plan(pruned)
        if plan is None:
            said = "is not pruned, or lost its plan.json; give a folder that `pelap prune` wrote"
            raise ModelError(f"{pruned}: {said}")
        if pipeline_plan(teacher) is not None:
            raise ModelError(f"{teacher}: is pruned itself; give the dense pipeline as --teacher")
        dense = load_pipeline(teacher, device)
        dataset = load_dataset(packed_dataset(data, params.dataset))
        pipe, resume_at = load_pipeline(pruned, device), out.with_name(f".{out.name}.resume")
        trained = distillation.distill_pipeline(
            pipe, dense, dataset, params.distill, weights, params.seed, resume_at
        )
        for name in ("history", "validation"):
            table = pd.DataFrame(getattr(trained.progress, name))
            files.write_csv(out.with_name(f"{out.name}.{name}.csv"), table)
        save_pipeline(trained.pipe, out, plan)
        if trained.state is not None:
            trained.state.drop()
    rows = {row["step"]: row for row in trained.progress.validation}
    before, after, steps = rows[0], rows[trained.kept_step], f"{trained.kept_step} of {params.distill.steps}"
    term, what = ("output", "difference to the teacher") if "output" in before else ("task", "loss")
    print(
        f"{what} on test pictures {before[term]:.4g} -> {after[term]:.4g} in {steps} steps; pipeline in {out}"
    )


def _weights(params: DistillParams) -> LossWeights:
    """Of the student that a pruned pipeline is."""
    if params.select == "distance":
        raise ConfigError(
            "distill.select: distance is not measured for pipelines; use loss (on test pictures) or last"
        )
    starts_pruned = [student for student in params.students.values() if student.start == "pruned"]
    if not starts_pruned:
        raise ConfigError(
            "distill.students: none has start: pruned, which is what the denoiser of a pruned pipeline does; "
            "add one"
        )
    others = [name for name, student in params.students.items() if student is not starts_pruned[0]]
    if others:
        print(f"not trained for a pipeline, which is one student: {', '.join(others)}")
    return starts_pruned[0]


def evaluate_pipelines(
    params: Params, folders: Sequence[Path], data: Path, out: Path, device: torch.device, prompts: Path | None
) -> None:
    """Write ``{pipeline: {metric: number}}`` with the floor, the protocol beside it, and print the table.

    Args:
        params: `dataset`, `seed` and the section `evaluate` are read. Of its sampler only the steps: every
            pipeline keeps its own scheduler.
        folders: Pipelines, pruned or not, each called by its folder's name. Times, and pictures one by one,
            are compared with the first's.
        data: Folder of the packed data sets.
        out: The JSON file.
        device: Where to compute.
        prompts: One prompt a line, for text-to-image.

    Raises:
        ConfigError: Two folders have the same name, prompts are missing or out of place, or the data set
            holds sounds.
        ModelError: Not a pipeline that can be used, or one for pictures of another size.
        DataError: The data set is not there or too small.
    """
    named, texts = _by_name(folders), None if prompts is None else read_prompts(prompts)
    with files.exclusive(out):
        dataset = load_dataset(packed_dataset(data, params.dataset))
        pipes = {name: opened(folder, device) for name, folder in named.items()}
        cache = reference_cache(data)
        result = compare(pipes, dataset, params.evaluate, texts, params.seed, cache, named)
        result.save(out)
    Console().print(rich_table(result.table, network="denoiser"))
    print(protocol_of.terminal(result.protocol))
    print(f"time change: against {next(iter(named))}; figures in {out}")


def _by_name(folders: Sequence[Path]) -> dict[str, Path]:
    named = {REAL_ROW: Path("the row of real pictures")}
    for folder in folders:
        name = folder.resolve().name
        if name in named:
            said = f"has the name of {named[name]}; rename it, rows are called by folder names"
            raise ConfigError(f"{folder}: {said}")
        named[name] = folder
    del named[REAL_ROW]
    return named

"""What stages do, done to a user's diffusers pipeline: folders and files instead of a run."""

from pathlib import Path

import torch

from pelap.config import Params
from pelap.config.upgrade import renamed_scores
from pelap.core import files
from pelap.core.device import protocol_beside
from pelap.core.errors import ConfigError, ModelError
from pelap.core.keys import code_of, key
from pelap.core.resume import ResumeState
from pelap.pipelines.pipeline_denoiser import pipeline_denoiser
from pelap.pipelines.pipeline_io import open_pipeline, pipeline_plan, save_pipeline
from pelap.pruning.pruner import Pruner
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
        files.write_csv(out, scores.table)
        files.write_json(protocol_beside(out), scores.protocol)
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
        scores, protocol = renamed_scores(files.read_csv(scores_file)), protocol_beside(scores_file)
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

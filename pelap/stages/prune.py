"""prune: scores to a plan, the plan to a smaller UNet, and the time that it really saves."""

import dataclasses
from pathlib import Path

from torch import nn

from pelap import io
from pelap.loading import load_model, load_plan, save_model
from pelap.measure.cost import count_params
from pelap.measure.latency import measure_latency
from pelap.models.ldm import LatentDiffusion
from pelap.params import PruneParams
from pelap.pruning.plan import Plan, make_plan, plan_of
from pelap.pruning.surgery import apply_plan
from pelap.stages.context import Context
from pelap.stages.score import forward_pass

PROTOCOL_KEYS = ("variant", "latency_batch_size", "latency_repeats")
"""What pruning takes over from the scoring that it follows."""


def run(context: Context, plan_file: Path | None = None) -> None:
    """Cut the scored variant's UNet.

    Args:
        context: Parameters, paths and device.
        plan_file: Apply this plan instead of making one from the scores.
    """
    paths = context.paths
    with io.exclusive(paths.prune):
        protocol = io.read_mapping(paths.score_protocol, PROTOCOL_KEYS)
        dense = load_model(paths.train(protocol["variant"]).model, context.device)
        plan = _plan(context, plan_file)
        pruned = with_unet(dense, apply_plan(dense.unet, plan), "pruned", dense.info.ema_decay)
        batch_size, repeats = protocol["latency_batch_size"], protocol["latency_repeats"]
        result = _measure(dense, pruned, plan, batch_size, repeats)
        with io.atomic_dir(paths.prune) as partial:
            io.write_json(partial / paths.plan.name, plan.to_json())
            save_model(pruned, partial / paths.pruned_model.name, plan)
            io.write_json(partial / paths.prune_result.name, result)
    print(
        f"{len(plan.operators)} operators removed; UNet parameters {result['params_before']:,} -> "
        f"{result['params_after']:,}; time saved {plan.time_reduction:.1%} by the scores, "
        f"{result['measured_time_reduction']:.1%} measured at batch {batch_size}"
    )


def with_unet(model: LatentDiffusion, unet: nn.Module, name: str, ema_decay: float) -> LatentDiffusion:
    """The same model around another UNet, which is averaged by its own `ema_decay`."""
    info = dataclasses.replace(model.info, name=name, ema_decay=ema_decay)
    return LatentDiffusion(info, model.vae, unet, model.mask, model.normaliser).eval()


def _plan(context: Context, plan_file: Path | None) -> Plan:
    scores = io.read_csv(context.paths.scores)
    if plan_file is not None:
        return plan_of(scores, [removal.operator for removal in load_plan(plan_file).operators])
    target, amount = _target(context.params.prune)
    return make_plan(scores, target, amount)


def _target(params: PruneParams) -> tuple[str, float]:
    return next((name, amount) for name, amount in params if amount is not None)


def _measure(
    dense: LatentDiffusion, pruned: LatentDiffusion, plan: Plan, batch_size: int, repeats: int
) -> dict[str, object]:
    """Promise and fact; the two UNets are timed in turns, so that a busy machine slows both alike."""
    device = next(dense.parameters()).device
    passes = {"dense": forward_pass(dense, batch_size), "pruned": forward_pass(pruned, batch_size)}
    latency = measure_latency(passes, device, repeats)
    return {
        "num_operators": len(plan.operators),
        "promised_time_reduction": plan.time_reduction,
        "measured_time_reduction": 1 - latency["pruned"].median_ms / latency["dense"].median_ms,
        "latency_ms_before": latency["dense"].median_ms,
        "latency_ms_after": latency["pruned"].median_ms,
        "latency_batch_size": batch_size,
        "params_before": count_params(dense.unet),
        "params_after": count_params(pruned.unet),
    }

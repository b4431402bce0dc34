"""Folders of pruned networks read back; how they are written is in `pelap.surgery.pruned_io`."""

from pathlib import Path

from diffusers import ModelMixin
from safetensors import safe_open
from torch import nn

from pelap.config.upgrade import OLD_STEPS
from pelap.core import files
from pelap.core.errors import DataError, PlanError
from pelap.core.part_io import build_part, demand_one_network, load_weights
from pelap.surgery.apply import apply_plan
from pelap.surgery.plan import Plan, plan_from_json
from pelap.surgery.pruned_io import (
    PLAN,
    PRUNED_WEIGHTS,
    digest,
    keep_plan,
    plan_kept,
    removed_operators,
)

__all__ = ["PLAN", "PRUNED_WEIGHTS", "demand_plan", "load_plan", "load_pruned"]


def demand_plan(network: nn.Module, plan: Plan | None) -> None:
    """See that a network that is to be saved knows the plan it was pruned by, if it was.

    Args:
        network: Pruned or not.
        plan: If given, that plan.

    Raises:
        PlanError: The plan is another one.
    """
    if plan is not None:
        keep_plan(network, plan)
    assert plan_kept(network) or not removed_operators(network), "a pruned network is saved with its plan"


def load_pruned(kind: type[ModelMixin], folder: Path, plan: Plan) -> nn.Module:
    """Rebuild a pruned network of class `kind`; unlike diffusers' own loader, nothing is filled in.

    Raises:
        ModelError: A file or a tensor is missing, left over or of another shape, or another network's files
            are there too.
        PlanError: The plan does not fit the configuration, or is not the one that the weights are of.
    """
    demand_one_network(folder)
    network: nn.Module = apply_plan(build_part(kind, folder), plan)
    load_weights(network, folder / PRUNED_WEIGHTS)
    _demand_plan_of_weights(folder / PRUNED_WEIGHTS, plan)
    return network


def _demand_plan_of_weights(path: Path, plan: Plan) -> None:
    """Weights say which plan they came by, since plans may leave tensors of equal names and shapes."""
    with safe_open(path, framework="pt") as file:
        written = (file.metadata() or {}).get("plan")
    if written not in (None, digest(plan), digest(plan, OLD_STEPS)):
        raise PlanError(f"{path}: is of another plan than the {PLAN} there; save the pruned network again")


def load_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        PlanError: It is missing or is not a plan.
    """
    try:
        return plan_from_json(files.read_json(path), str(path))
    except DataError as error:
        raise PlanError(str(error)) from None

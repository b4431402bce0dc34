"""Applying a plan: the modules are really gone, nothing of them is computed or stored."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from pelap.core.errors import PlanError
from pelap.surgery.operators import disable_inplace, is_inside, put
from pelap.surgery.plan import Plan, PlanEntry, check_disjoint, demand_network
from pelap.surgery.pruned_io import keep_plan, plan_kept, removed_operators
from pelap.surgery.replacements import Replacement, ReplacementSpec, build_replacement

__all__ = ["apply_plan", "demand_operator", "removed_operators"]

GIVE_TUPLES = ("MultiheadAttention", "Transformer2DModel")
"""Classes of operators whose callers take a part of what they give."""
UNSPECIFIED = ReplacementSpec("residual")
"""The residual path where there is one, else nothing: for a plan of bare names."""

Network = TypeVar("Network", bound=nn.Module)


def apply_plan(unet: Network, plan: Plan, replacements: Mapping[str, Replacement] | None = None) -> Network:
    """A copy of `unet` without the plan's operators; all other weights are kept.

    The copy of a network of diffusers knows the plan, and is saved with it; see `pelap.surgery.pruned_io`.

    Args:
        unet: The dense network.
        plan: What to take out and what to put in its place. An empty plan gives an equal network.
        replacements: Replacements with their weights, from `fit_replacements`; without them projections have
            random weights, to be loaded or trained.

    Raises:
        PlanError: The plan is for another network, an operator does not exist, is listed twice or inside
            another, or its replacement lacks a number or is needed and not given.
    """
    check_disjoint([removal.operator for removal in plan.operators])
    demand_network(plan, unet)
    for removal in plan.operators:
        demand_operator(unet, removal.operator)
        _demand_specified(unet, removal, replacements or {})
    pruned = copy.deepcopy(unet)
    disable_inplace(pruned)
    for removal in plan.operators:
        given = (replacements or {}).get(removal.operator)
        module = pruned.get_submodule(removal.operator)
        put(
            pruned,
            removal.operator,
            copy.deepcopy(given)
            if given is not None
            else build_replacement(removal.replacement or UNSPECIFIED, module, removal.operator, unet),
        )
    if plan.operators and hasattr(pruned, "save_config"):
        keep_plan(pruned, _after(plan_kept(unet), plan))
    return pruned


def _after(earlier: Plan | None, plan: Plan) -> Plan:
    """What both plans do, one after the other."""
    if earlier is None:
        return plan
    names = [removal.operator for removal in plan.operators]
    left = [
        removal
        for removal in earlier.operators
        if not any(removal.operator == name or is_inside(removal.operator, name) for name in names)
    ]
    saved = earlier.num_params + plan.num_params
    return dataclasses.replace(earlier, operators=(*left, *plan.operators), num_params=saved)


def demand_operator(unet: nn.Module, name: str) -> None:
    """Raise a `PlanError` if `unet` has no submodule of that name."""
    if not name:
        raise PlanError("plan: an operator has an empty name; drop this entry")
    try:
        unet.get_submodule(name)
    except AttributeError:
        raise PlanError(
            f"plan: {type(unet).__name__} has no operator {name!r}; the plan belongs to another model, or "
            "correct this entry"
        ) from None


def _demand_specified(unet: nn.Module, removal: PlanEntry, replacements: Mapping[str, Replacement]) -> None:
    """Refuse a bare name where the operator gives a tuple: a tensor in its place would be taken apart."""
    kind = type(unet.get_submodule(removal.operator)).__name__
    if kind in GIVE_TUPLES and removal.replacement is None and removal.operator not in replacements:
        raise PlanError(f"plan: {removal.operator}: a {kind} needs its replacement; use complete_plan first")

"""Applying a plan: the modules are really gone, nothing of them is computed or stored."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from pelap.errors import PlanError
from pelap.pruning.operators import first_tensor
from pelap.pruning.plan import Plan, check_disjoint

Network = TypeVar("Network", bound=nn.Module)


class Skip(nn.Module):
    """Stands where an operator was: gives back the tensor it is given, whatever comes with it.

    For a block or an attention layer this is the residual path around the removed body.
    """

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return first_tensor(args, kwargs)


REPLACEMENTS = {"identity": Skip, "residual": Skip}
"""By the name that a plan gives; where all shapes stay, both are the same module."""


def apply_plan(unet: Network, plan: Plan) -> Network:
    """A copy of `unet` without the plan's operators; all other weights are kept.

    Raises:
        PlanError: An operator does not exist, is listed twice or inside another, or its replacement
            is unknown.
    """
    check_disjoint([removal.operator for removal in plan.operators])
    pruned = copy.deepcopy(unet)
    for removal in plan.operators:
        parent_name, _, child = removal.operator.rpartition(".")
        try:
            pruned.get_submodule(removal.operator)
        except AttributeError:
            raise PlanError(
                f"plan: {type(unet).__name__} has no operator {removal.operator!r}; the plan belongs to "
                "another model, or correct this entry"
            ) from None
        if not child:
            raise PlanError("plan: an operator has an empty name; drop this entry")
        if removal.replacement not in REPLACEMENTS:
            raise PlanError(
                f"plan: {removal.operator}: unknown replacement {removal.replacement!r}; "
                f"use one of {', '.join(REPLACEMENTS)}"
            )
        setattr(pruned.get_submodule(parent_name), child, REPLACEMENTS[removal.replacement]())
    return pruned


def removed_operators(unet: nn.Module) -> list[str]:
    """Names of the places where an operator was."""
    return [name for name, module in unet.named_modules() if isinstance(module, Skip)]

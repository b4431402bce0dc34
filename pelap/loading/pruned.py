"""A pruned network as a folder: its configuration, the plan it came by, and the weights that are left.

The weights are under a name that is not diffusers' own: it then refuses the folder instead of loading
it with fresh random weights where something is gone.
"""

from pathlib import Path

from diffusers import ModelMixin
from torch import nn

from pelap import io
from pelap.errors import DataError, PlanError
from pelap.models.parts import build_part, load_weights
from pelap.pruning.plan import Plan, plan_from_json
from pelap.pruning.surgery import apply_plan

PLAN = "plan.json"
PRUNED_WEIGHTS = "pruned.safetensors"


def save_pruned(network: ModelMixin, folder: Path, plan: Plan, plan_path: Path | None = None) -> None:
    """Write a pruned network.

    Args:
        network: What `plan` made of the network that its configuration describes.
        folder: For config.json and the weights.
        plan: How it came about.
        plan_path: Where the plan goes; None: into `folder`.
    """
    network.save_config(folder)
    io.write_json(plan_path or folder / PLAN, plan.to_json())
    io.save_tensors(folder / PRUNED_WEIGHTS, network.state_dict())


def load_pruned(kind: type[ModelMixin], folder: Path, plan: Plan) -> nn.Module:
    """Rebuild a pruned network of class `kind`; unlike diffusers' own loader, nothing is filled in.

    Raises:
        ModelError: A file or a tensor is missing, left over or of another shape.
        PlanError: The plan does not fit the configuration.
    """
    network: nn.Module = apply_plan(build_part(kind, folder), plan)
    load_weights(network, folder / PRUNED_WEIGHTS)
    return network


def load_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        PlanError: It is missing or is not a plan.
    """
    try:
        return plan_from_json(io.read_json(path), str(path))
    except DataError as error:
        raise PlanError(str(error)) from None

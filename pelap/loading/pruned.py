"""A pruned network as a folder: its configuration, the plan it came by, and the weights that are left.

The weights are under a name that is not diffusers' own: it then refuses the folder instead of loading
it with fresh random weights where something is gone.
"""

from pathlib import Path
from types import MethodType

from diffusers import ModelMixin
from torch import nn

from pelap import io
from pelap.errors import DataError, PlanError
from pelap.models.parts import build_part, load_weights
from pelap.pruning.plan import Plan, plan_from_json
from pelap.pruning.surgery import apply_plan

PLAN = "plan.json"
PRUNED_WEIGHTS = "pruned.safetensors"


def keep_plan(network: nn.Module, plan: Plan) -> None:
    """Make `network.save_pretrained` write the pruned form, for those who save a loaded pipeline again.

    diffusers' own would write the dense network's configuration beside the weights that are left.
    """
    network.pelap_plan = plan  # type: ignore[assignment]
    network.save_pretrained = MethodType(_save_pretrained, network)  # type: ignore[assignment]


def _save_pretrained(network: ModelMixin, save_directory: str | Path, **_: object) -> None:
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    save_pruned(network, folder, network.pelap_plan)


def save_pruned(network: ModelMixin, folder: Path, plan: Plan) -> None:
    """Write a pruned network.

    Args:
        network: What `plan` made of the network that its configuration describes.
        folder: For config.json, the plan and the weights.
        plan: How it came about.
    """
    network.save_config(folder)
    io.write_json(folder / PLAN, plan.to_json())
    io.save_tensors(folder / PRUNED_WEIGHTS, network.state_dict())


def load_pruned(kind: type[ModelMixin], folder: Path, plan: Plan) -> nn.Module:
    """Rebuild a pruned network of class `kind`; unlike diffusers' own loader, nothing is filled in.

    Raises:
        ModelError: A file or a tensor is missing, left over or of another shape.
        PlanError: The plan does not fit the configuration.
    """
    network: nn.Module = apply_plan(build_part(kind, folder), plan)
    load_weights(network, folder / PRUNED_WEIGHTS)
    keep_plan(network, plan)
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

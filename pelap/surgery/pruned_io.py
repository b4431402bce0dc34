"""A pruned network as a folder: its configuration, the plan it came by, and the weights that are left.

The weights are under a name that is not diffusers' own: it then refuses the folder instead of loading
it with fresh random weights where something is gone.

A pruned network knows its plan and is of a class of its own, by which its `save_pretrained` writes that form,
in a pipeline of diffusers too. That class differs from the dense one in nothing else, its name included; but
it is not that class, which `from_pipe` of a single class of diffusers' pipelines asks for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pelap.config.upgrade import renamed_steps
from pelap.core import files
from pelap.core.errors import PlanError
from pelap.surgery.operators import is_inside
from pelap.surgery.plan import Plan
from pelap.surgery.replacements import Replacement

PLAN = "plan.json"
PRUNED_WEIGHTS = "pruned.safetensors"
ABOVE = (PLAN, "changes.csv", "result.json")
"""Where `pelap prune` wrote a pipeline they lie at its top; one that was loaded and saved again has the plan
beside the weights, and no more."""

_CLASSES: dict[Any, type[nn.Module]] = {}


class Pruned:
    """What a pruned network does otherwise than a dense one of its class.

    Without a plan (its class was called, or loaded a dense folder) it is as dense as any.
    """

    pelap_plan: Plan | None = None

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **more: Any,
    ) -> None:
        """Write the pruned form in place of any other network in the folder.

        It is one file of safetensors and has no variants; an option of diffusers that asks for something
        else is named as unused.
        """
        asked = {
            "variant": variant,
            "max_shard_size": max_shard_size,
            "push_to_hub": push_to_hub,
            "use_flashpack": use_flashpack,
        }
        given = {name: value for name, value in asked.items() if value} | more
        if not safe_serialization:
            given["safe_serialization"] = False
        if self.pelap_plan is None:
            super().save_pretrained(save_directory, is_main_process, **given)  # type: ignore[misc]
        elif is_main_process:
            self._save_pruned(Path(save_directory), self.pelap_plan)
            if given:
                print(
                    f"{save_directory}: {PRUNED_WEIGHTS} is one file, no variant; unused: {', '.join(given)}"
                )

    def _save_pruned(self: Any, folder: Path, plan: Plan) -> None:
        is_described_above = (folder / PRUNED_WEIGHTS).exists() and not (folder / PLAN).exists()
        folder.mkdir(parents=True, exist_ok=True)
        # First what may fail: until it is written, what lies there stays as it was.
        files.save_tensors(folder / PRUNED_WEIGHTS, self.state_dict(), {"plan": digest(plan)})
        files.write_json(folder / PLAN, plan.to_json())
        self.save_config(folder)
        files.drop(file for file in files.network_files(folder) if file.name not in (PLAN, PRUNED_WEIGHTS))
        if is_described_above and (folder.parent / PLAN).exists():
            files.drop(folder.parent / name for name in ABOVE)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # A class is pickled by its name, which is the dense one's.
        return _unfilled, (type(self).__bases__[1],), self.__getstate__()


def keep_plan(network: nn.Module, plan: Plan) -> None:
    """Make a network know the plan that it was pruned by, so that whoever saves it writes the pruned form.

    diffusers' own would write the dense network's configuration beside the weights that are left.

    Raises:
        PlanError: The plan is not what was done to it.
    """
    network = plain(network)
    _demand_plan_of(network, plan)
    network.pelap_plan = plan  # type: ignore[assignment]
    network.__class__ = pruned_class(_dense_class(type(network)))


def plan_kept(network: nn.Module) -> Plan | None:
    """The plan that a network was pruned by, as far as it knows."""
    return getattr(plain(network), "pelap_plan", None)


def digest(plan: Plan, names: Mapping[str, str] | None = None) -> str:
    """Names what a plan does; two may leave weights of the same names and shapes.

    Args:
        plan: Complete.
        names: What steps of replacements are called in it, where that is not as here.
    """
    replaced = {}
    for each in plan.operators:
        given = each.replacement and each.replacement.given()
        if given and names:
            given["name"] = renamed_steps(given["name"], names)
        replaced[each.operator] = given
    return files.digest(replaced)


def plain(network: nn.Module) -> nn.Module:
    """The network that `torch.compile` may have wrapped."""
    return getattr(network, "_orig_mod", network)


def removed_operators(unet: nn.Module) -> list[str]:
    """Names of the places where an operator was."""
    return [name for name, module in unet.named_modules() if isinstance(module, Replacement)]


def pruned_class(dense: type[nn.Module]) -> type[nn.Module]:
    """The class of pruned networks of a class; the same at every call."""
    if dense not in _CLASSES:
        names = {name: getattr(dense, name) for name in ("__module__", "__qualname__", "__doc__")}
        _CLASSES[dense] = type(dense.__name__, (Pruned, dense), names)
    return _CLASSES[dense]


def _dense_class(kind: type[nn.Module]) -> type[nn.Module]:
    return kind.__bases__[1] if issubclass(kind, Pruned) else kind


def _unfilled(dense: type[nn.Module]) -> nn.Module:
    kind = pruned_class(dense)
    network: nn.Module = kind.__new__(kind)
    return network


def _demand_plan_of(network: nn.Module, plan: Plan) -> None:
    removed = removed_operators(network)
    outermost = {name for name in removed if not any(is_inside(name, other) for other in removed)}
    wrong = outermost.symmetric_difference(removal.operator for removal in plan.operators)
    if wrong:
        raise PlanError(
            f"plan: {min(wrong)} is not removed in both, the plan and the {type(network).__name__}; give the "
            "plan that it was pruned with"
        )

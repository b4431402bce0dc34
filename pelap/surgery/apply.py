"""Applying a plan, and pruned networks as folders.

The modules of a plan are really gone, nothing of them is computed or stored. A pruned network knows its plan
and is of a class of its own, by which its `save_pretrained` writes configuration, plan and the weights that
are left, in a pipeline of diffusers too. The weights are under a name that is not diffusers' own: it then
refuses the folder instead of loading it with fresh random weights where something is gone.

The class differs from the dense one in nothing else, its name included; but it is not that class, which
`from_pipe` of a single class of diffusers' pipelines asks for.
"""

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from diffusers import ModelMixin
from safetensors import safe_open
from torch import nn

from pelap.config.upgrade import OLD_STEPS, renamed_steps
from pelap.core import digests, files
from pelap.core.errors import PlanError
from pelap.core.part_io import build_part, demand_one_network, load_weights, network_files
from pelap.surgery.operators import disable_inplace, is_inside, put
from pelap.surgery.plan import Plan, PlanEntry, check_disjoint, demand_network, joined
from pelap.surgery.replacements import Replacement, ReplacementSpec, build_replacement

PLAN = "plan.json"
PRUNED_WEIGHTS = "pruned.safetensors"
ABOVE = (PLAN, "changes.csv", "result.json")
"""Where `pelap prune` wrote a pipeline they lie at its top; one that was loaded and saved again has the plan
beside the weights, and no more."""

GIVE_TUPLES = ("MultiheadAttention", "Transformer2DModel")  # whose callers take a part of what they give
UNSPECIFIED = ReplacementSpec("residual")  # for a plan of bare names: the residual path where there is one

Network = TypeVar("Network", bound=nn.Module)


def apply_plan(unet: Network, plan: Plan, replacements: Mapping[str, Replacement] | None = None) -> Network:
    """A copy of `unet` without the plan's operators; all other weights are kept.

    The copy of a network of diffusers knows the plan, and is saved with it.

    Args:
        unet: The dense network.
        plan: An empty one gives an equal network.
        replacements: With their weights, from `fit_replacements`; without them projections have random
            weights, to be loaded or trained.

    Raises:
        PlanError: The plan is for another network, an operator does not exist, is listed twice or inside
            another, or its replacement lacks a number or is needed and not given.
    """
    check_disjoint([entry.operator for entry in plan.operators])
    demand_network(plan, unet)
    replacements = replacements or {}
    for entry in plan.operators:
        _demand_operator(unet, entry, entry.operator in replacements)
    pruned = copy.deepcopy(unet)
    disable_inplace(pruned)
    for entry in plan.operators:
        part = copy.deepcopy(replacements.get(entry.operator))
        if part is None:
            module = pruned.get_submodule(entry.operator)
            part = build_replacement(entry.replacement or UNSPECIFIED, module, entry.operator, unet)
        put(pruned, entry.operator, part)
    if plan.operators and hasattr(pruned, "save_config"):
        earlier = plan_kept(unet)
        keep_plan(pruned, plan if earlier is None else joined(earlier, plan))
    return pruned


def _demand_operator(unet: nn.Module, entry: PlanEntry, is_given: bool) -> None:
    name = entry.operator
    if not name:
        raise PlanError("plan: an operator has an empty name; drop this entry")
    try:
        kind = type(unet.get_submodule(name)).__name__
    except AttributeError:
        raise PlanError(
            f"plan: {type(unet).__name__} has no operator {name!r}; the plan belongs to another model, or "
            "correct this entry"
        ) from None
    # A tensor in the place of a tuple would be taken apart.
    if kind in GIVE_TUPLES and entry.replacement is None and not is_given:
        raise PlanError(f"plan: {name}: a {kind} needs its replacement; use complete_plan first")


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
        asked = {"variant": variant, "max_shard_size": max_shard_size}
        asked |= {"push_to_hub": push_to_hub, "use_flashpack": use_flashpack}
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
        files.drop(file for file in network_files(folder) if file.name not in (PLAN, PRUNED_WEIGHTS))
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
    removed = removed_operators(network)
    outermost = {name for name in removed if not any(is_inside(name, other) for other in removed)}
    wrong = outermost.symmetric_difference(entry.operator for entry in plan.operators)
    if wrong:
        raise PlanError(
            f"plan: {min(wrong)} is not removed in both, the plan and the {type(network).__name__}; give the "
            "plan that it was pruned with"
        )
    network.pelap_plan = plan  # type: ignore[assignment]
    kind: Any = type(network)
    network.__class__ = pruned_class(kind.__bases__[1] if issubclass(kind, Pruned) else kind)


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
        replaced[each.operator] = given and given | {"name": renamed_steps(given["name"], names or {})}
    return digests.digest(replaced)


def plain(network: nn.Module) -> nn.Module:
    """The network that `torch.compile` may have wrapped."""
    return getattr(network, "_orig_mod", network)


def removed_operators(unet: nn.Module) -> list[str]:
    """Names of the places where an operator was."""
    return [name for name, module in unet.named_modules() if isinstance(module, Replacement)]


@cache
def pruned_class(dense: Any) -> type[nn.Module]:
    """The class of pruned networks of a class."""
    names = {name: getattr(dense, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(dense.__name__, (Pruned, dense), names)


def _unfilled(dense: Any) -> nn.Module:
    kind = pruned_class(dense)
    network: nn.Module = kind.__new__(kind)
    return network


def demand_plan(network: nn.Module, plan: Plan | None) -> None:
    """See that a network that is to be saved knows the plan it was pruned by, if it was.

    Raises:
        PlanError: A plan is given, and is another one.
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
    path = folder / PRUNED_WEIGHTS
    load_weights(network, path)
    # Weights say which plan they came by, since plans may leave tensors of equal names and shapes.
    with safe_open(path, framework="pt") as file:
        written = (file.metadata() or {}).get("plan")
    if written not in (None, digest(plan), digest(plan, OLD_STEPS)):
        raise PlanError(f"{path}: is of another plan than the {PLAN} there; save the pruned network again")
    return network

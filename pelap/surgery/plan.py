"""A plan: which operators to remove, and what takes their place; data that a person can read and edit."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from pelap.core import digests, files
from pelap.core.errors import DataError, PlanError
from pelap.surgery.operators import Operator, is_inside
from pelap.surgery.replacements import ReplacementSpec, affine, replacement_from_json

FORMAT = 3  # 2, of version 0.1, had other names for replacements; they are read all the same


@dataclass(frozen=True)
class PlanEntry:
    """One operator to take out, and what takes its place."""

    operator: str
    kind: str = ""
    replacement: ReplacementSpec | None = None  # None: what `find_operators` offers for it


@dataclass(frozen=True)
class Plan:
    """Operators to remove, all at once; an operator inside a removed one is not listed."""

    operators: tuple[PlanEntry, ...]
    target: dict[str, float] = field(default_factory=dict)  # what was asked for, as one entry
    time_reduction: float = 0.0
    """Share of the UNet's time that the removed operators took when they were scored, less that of the
    replacements."""
    num_params: int = 0  # parameters removed, less those of the replacements
    network: str = ""  # `fingerprint` of the network that it is for; empty: any

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "format": FORMAT,
            "network": self.network,
            "target": self.target,
            "time_reduction": self.time_reduction,
            "num_params": self.num_params,
            "operators": [
                {"operator": entry.operator, "kind": entry.kind}
                | (entry.replacement.to_json() if entry.replacement else {})
                for entry in self.operators
            ],
        }


def fingerprint(unet: nn.Module) -> str:
    """Class of a network and a digest of the names and shapes of its parameters, not of their values."""
    shapes = {name: list(parameter.shape) for name, parameter in unet.named_parameters()}
    return f"{type(unet).__name__}-{digests.digest(shapes)}"


def demand_network(plan: Plan, unet: nn.Module) -> None:
    """Raise a `PlanError` if the plan was made for a network of another class or other shapes."""
    if plan.network not in ("", fingerprint(unet)):
        raise PlanError(
            f"plan: was made for the network {plan.network}, this one is {fingerprint(unet)}; give the model "
            'that it was made for, or drop its "network" to try it all the same'
        )


def plan_from_json(value: Any, source: str) -> Plan:
    """Read a plan; only ``operators`` is needed, and its entries may be bare names.

    Raises:
        PlanError: It is not a plan.
    """
    entries = value.get("operators") if isinstance(value, Mapping) else None
    if not isinstance(entries, list):
        raise PlanError(f'{source}: not a pruning plan; expected an object with a list "operators"')
    try:
        return Plan(
            tuple(_entry(entry, source) for entry in entries),
            dict(value.get("target", {})),
            float(value.get("time_reduction", 0.0)),
            int(value.get("num_params", 0)),
            str(value.get("network", "")),
        )
    except (OverflowError, TypeError, ValueError) as error:
        raise PlanError(f"{source}: target, time_reduction or num_params: {error}; drop that key") from None


def load_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        PlanError: It is missing or is not a plan.
    """
    try:
        return plan_from_json(files.read_json(path), str(path))
    except DataError as error:
        raise PlanError(str(error)) from None


def _entry(entry: Any, source: str) -> PlanEntry:
    fields = {"operator": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, Mapping) or "operator" not in fields:
        raise PlanError(f'{source}: operators: {entry!r} has no name; give {{"operator": NAME}}')
    name, kind, wanted = (fields.get(part, "") for part in ("operator", "kind", "replacement"))
    if not all(isinstance(text, str) for text in (name, kind, wanted)):
        raise PlanError(f"{source}: operators: {entry!r}: names must be texts")
    where = f"{source}: operators: {name!r}"
    replacement = replacement_from_json(fields, where) if "replacement" in fields else None
    return PlanEntry(name, kind, replacement)


def complete_plan(plan: Plan, unet: nn.Module, operators: Sequence[Operator]) -> Plan:
    """The plan with kinds, replacements and their numbers filled in, for this network.

    Raises:
        PlanError: It is another network's, or names something that cannot be replaced here.
    """
    demand_network(plan, unet)
    offered = {operator.name: operator for operator in operators}
    entries = []
    for entry in plan.operators:
        if entry.operator not in offered:
            raise PlanError(
                f"plan: {type(unet).__name__} has no operator {entry.operator!r} that can be replaced; the "
                "plan belongs to another model, or correct this entry (the table of scores lists all names)"
            )
        operator = offered[entry.operator]
        replacement = _completed(entry.replacement, operator, unet.get_submodule(operator.name))
        entries.append(PlanEntry(operator.name, operator.kind, replacement))
    return dataclasses.replace(plan, operators=tuple(entries), network=fingerprint(unet))


def _completed(wanted: ReplacementSpec | None, operator: Operator, module: nn.Module) -> ReplacementSpec:
    offered = operator.replacement
    if wanted is None:
        return offered
    names = [offered.name]
    if operator.input_shape == operator.output_shape:
        names += ["identity", "residual"]
    for one, other in (("projection", "channel_pool"), ("channel_pool", "projection")):
        if one in offered.steps:
            names.append(offered.name.replace(one, other))
    possible = {name: dataclasses.replace(offered, name=name) for name in names}
    if operator.input_shape == operator.output_shape and operator.kind == "normalisation":
        possible["affine"] = affine(module, operator.input_shape)
    if wanted.name in possible:
        return possible[wanted.name]
    if max(wanted.in_channels, wanted.factor) > 1:
        return wanted  # somebody who gives the numbers knows what fits
    raise PlanError(
        f"plan: {operator.name}: cannot be replaced by {wanted.name}; use {' or '.join(possible)}"
    )


def joined(plan: Plan, more: Plan) -> Plan:
    """What both do, one after the other; what went earlier goes with an operator around it."""
    names = [entry.operator for entry in more.operators]
    left = [
        entry
        for entry in plan.operators
        if not any(entry.operator == name or is_inside(entry.operator, name) for name in names)
    ]
    saved = plan.num_params + more.num_params
    return dataclasses.replace(plan, operators=(*left, *more.operators), num_params=saved)


def check_disjoint(names: Sequence[str]) -> None:
    """Raise a `PlanError` where an operator is listed twice, or inside another one."""
    for position, name in enumerate(names):
        for other in (*names[:position], *names[position + 1 :]):
            if name == other or is_inside(name, other):
                how = "twice" if name == other else f"inside {other!r}, which goes as a whole"
                raise PlanError(f"plan: {name!r} is listed {how}; drop one of the entries")

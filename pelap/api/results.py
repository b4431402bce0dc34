"""What the calls give: tables with the protocol beside them, to be looked at, edited and saved."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from pelap.config import ScoreParams
from pelap.core import files
from pelap.core.device import protocol_beside
from pelap.core.errors import PlanError
from pelap.pruning.pruner import Pruner
from pelap.pruning.selection import plan_of
from pelap.surgery.plan import Plan, load_plan, plan_from_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_SHOWN = 4  # operators that a text lists from either end
SHOWN = ("operator", "kind", "replacement", "score", "params", "latency_ms", "latency_share")
MADE_WITH = "made_with"  # key of a plan's file: how the scores were made that it comes from


@dataclass(frozen=True, repr=False, eq=False)
class Scores:
    """How much latents change without each operator of a denoiser, and what it costs."""

    table: pd.DataFrame  # a row an operator, least score first; docs/scoring.md explains the columns
    protocol: dict[str, Any]  # what they were made with, as JSON
    prompts: tuple[str, ...] = ()
    pruner: Pruner | None = None
    """The model on the bench, with what was computed for it; None for a table from a file."""

    def save(self, path: str | Path) -> None:
        """Write the table as CSV, and the protocol beside it; `pelap pipeline prune --scores` reads them."""
        files.write_csv(Path(path), self.table)
        files.write_json(protocol_beside(Path(path)), self.protocol)

    def plot(self) -> "Figure":
        """Every operator's score, least first, with its 95 % interval."""
        from pelap.report.figures.operators import operator_bars

        return _shown_in_notebooks(operator_bars(self.table, {}))

    @property
    def _title(self) -> str:
        made = self.protocol
        where = f" of {made['denoiser']}" if "denoiser" in made else ""
        how = f", {made['num_latents']} latents of {made['num_seeds']} seeds" if "num_latents" in made else ""
        agree = made.get("rank_correlation")
        seeds = "" if agree is None else f", rank correlation between seeds {agree:.3f}"
        return f"scores of {len(self.table)} operators{where}{how}{seeds}; least and most"

    @property
    def _ends(self) -> pd.DataFrame:
        rows = self.table[[column for column in SHOWN if column in self.table]]
        return rows if len(rows) <= 2 * NUM_SHOWN else pd.concat([rows.head(NUM_SHOWN), rows.tail(NUM_SHOWN)])

    def __repr__(self) -> str:
        return f"{self._title}:\n{_text(self._ends)}"

    def _repr_html_(self) -> str:
        return _page(self._title, self._ends)


@dataclass(frozen=True, repr=False, eq=False)
class PruningPlan:
    """Operators to remove, all at once, and what takes their places; nothing is done to a network yet."""

    plan: Plan
    scores: Scores | None = None  # what it was made from
    measured_time_reduction: float | None = None
    """Share of the denoiser's time that it saves by the clock; None: not measured."""
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """Of `scores`, where these are not there: `seed`, keys of the section `score`, and `prompts`."""

    @property
    def operators(self) -> list[str]:
        """Their names."""
        return [entry.operator for entry in self.plan.operators]

    @property
    def table(self) -> pd.DataFrame:
        """A row an operator, with its score and cost where they are known."""
        rows = [
            {"operator": each.operator, "replacement": each.replacement and each.replacement.name}
            for each in self.plan.operators
        ]
        table = pd.DataFrame(rows, columns=["operator", "replacement"])
        if self.scores is None:
            return table
        known = [column for column in SHOWN if column in self.scores.table and column != "replacement"]
        return table.merge(self.scores.table[known], on="operator")[
            list(dict.fromkeys(["operator", *known, *table]))
        ]

    def without(self, *names: str) -> "PruningPlan":
        """The same without some operators, which are kept.

        Raises:
            PlanError: One is not in the plan.
        """
        unknown = [name for name in names if name not in self.operators]
        if unknown:
            raise PlanError(f"plan: {unknown[0]!r} is not in it; it has {', '.join(self.operators)}")
        left = tuple(entry for entry in self.plan.operators if entry.operator not in names)
        plan = dataclasses.replace(self.plan, operators=left)
        if self.scores is not None:
            plan = plan_of(self.scores.table, plan)
        return dataclasses.replace(self, plan=plan, measured_time_reduction=None)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; only ``operators`` is needed to prune, and its entries may be bare names."""
        return self.plan.to_json() | {MADE_WITH: dict(self.how)}

    def save(self, path: str | Path) -> None:
        """Write it as JSON; `prune`, and `pelap prune --plan`, take the file."""
        files.write_json(Path(path), self.to_json())

    @property
    def how(self) -> Mapping[str, Any]:
        """What the scores were made with: `seed`, keys of the section `score`, and `prompts`."""
        if self.scores is None:
            return self.made_with
        protocol = self.scores.protocol
        keys = ("seed", *(key for key in ScoreParams.model_fields if key in protocol))
        return {key: protocol[key] for key in keys if key in protocol} | {
            "prompts": list(self.scores.prompts)
        }

    def plot(self) -> "Figure":
        """Every operator's score against the time that it takes, with those that are removed."""
        from pelap.report.figures.operators import score_latency

        if self.scores is None:
            raise PlanError("plan: nothing is known of its operators; make it from scores to plot it")
        replaced = {
            each.operator: each.replacement.name if each.replacement else "" for each in self.plan.operators
        }
        return _shown_in_notebooks(score_latency(self.scores.table, replaced))

    @property
    def _title(self) -> str:
        saved = f"time saved {self.plan.time_reduction:.1%} by the scores"
        if self.measured_time_reduction is not None:
            saved += f", {self.measured_time_reduction:.1%} measured"
        return f"plan of {len(self.operators)} operators; {saved}; {self.plan.num_params:,} parameters"

    def __repr__(self) -> str:
        return f"{self._title}:\n{_text(self.table)}"

    def _repr_html_(self) -> str:
        return _page(self._title, self.table)


def read_plan(value: Any) -> PruningPlan:
    """A plan in whatever form somebody has it: as it was made, as data, as its file, or as names.

    Raises:
        PlanError: It is no plan.
    """
    if isinstance(value, PruningPlan):
        return value
    if isinstance(value, Plan):
        return PruningPlan(value)
    if isinstance(value, str | Path):
        how = files.read_json(Path(value)) if Path(value).is_file() else {}
        return PruningPlan(load_plan(Path(value)), made_with=how.get(MADE_WITH, {}))
    if isinstance(value, Sequence):
        value = {"operators": list(value)}
    return PruningPlan(plan_from_json(value, "plan"), made_with=value.get(MADE_WITH, {}))


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """Models side by side: what their pictures are like, and what they cost."""

    metrics: dict[str, dict[str, float]]
    """By row and metric; the row ``real`` is of other real pictures, the floor."""
    protocol: dict[str, Any]  # what the figures are of and were made with, as JSON
    samples: dict[str, torch.Tensor] = field(default_factory=dict)
    """The first pictures of every row, uint8 (N, C, H, W), of all models from the same noise."""

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a model, a column a metric."""
        from pelap.report.tables import metrics_frame

        return metrics_frame(self.metrics, scored=self.protocol["dense"])

    def save(self, path: str | Path) -> None:
        """Write the metrics as JSON, and the protocol beside them."""
        files.write_json(Path(path), self.metrics)
        files.write_json(protocol_beside(Path(path)), self.protocol)

    def plot(self) -> "Figure":
        """Quality against time, and pictures of every model from the same noise."""
        from pelap.api.figure import side_by_side

        return _shown_in_notebooks(side_by_side(self.table, self.samples))

    def __repr__(self) -> str:
        from rich.console import Console

        from pelap.report import protocol, tables

        console = Console(width=80, file=None)
        with console.capture() as capture:
            console.print(tables.rich_table(self.table, network="denoiser"))
        return f"{capture.get().rstrip()}\n\n{protocol.terminal(self.protocol)}"

    def _repr_html_(self) -> str:
        from pelap.report import protocol, tables

        shown = [each for each in tables.columns(self.table) if each.brief]
        rows = {each.heading: [each.of(row) for _, row in self.table.iterrows()] for each in shown}
        frame = pd.DataFrame(rows, index=self.table.index)
        return f"{frame.to_html()}<p>{html.escape(protocol.line(self.protocol))}</p>"


def _text(table: pd.DataFrame) -> str:
    return str(table.to_string(index=False, float_format="{:.4g}".format))


def _page(title: str, table: pd.DataFrame) -> str:
    return f"<p>{html.escape(title)}</p>{table.to_html(index=False, float_format='{:.4g}'.format)}"


def _shown_in_notebooks(figure: "Figure") -> "Figure":
    """Jupyter asks for this; figures that pyplot did not make have none of it."""
    from pelap.report.figures.style import to_png

    figure._repr_png_ = lambda: to_png(figure)  # type: ignore[attr-defined]
    return figure

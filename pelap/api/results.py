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
from torch import nn

from pelap.config import ScoreParams
from pelap.core import files
from pelap.core.device import protocol_beside
from pelap.core.errors import PlanError
from pelap.core.tables import write_table
from pelap.pruning.pruner import Pruner
from pelap.pruning.selection import plan_of
from pelap.surgery.plan import Plan, load_plan, plan_from_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_SHOWN = 4  # operators that a text lists from either end
SHOWN = ("operator", "kind", "replacement", "score", "params", "latency_ms", "latency_share")
MADE_WITH = "made_with"  # key of a plan's file: how the scores were made that it comes from


class _Shown:
    """How a table with a title is shown, as text and in notebooks."""

    def _shown(self) -> tuple[str, pd.DataFrame]:
        raise NotImplementedError

    def __repr__(self) -> str:
        title, table = self._shown()
        return f"{title}:\n{table.to_string(index=False, float_format='{:.4g}'.format)}"

    def _repr_html_(self) -> str:
        title, table = self._shown()
        return f"<p>{html.escape(title)}</p>{table.to_html(index=False, float_format='{:.4g}'.format)}"


@dataclass(frozen=True, repr=False, eq=False)
class Scores(_Shown):
    """How much latents change without each operator of a denoiser, and what it costs."""

    table: pd.DataFrame  # a row an operator, least score first; docs/scoring.md explains the columns
    protocol: dict[str, Any]  # what they were made with, as JSON
    prompts: tuple[str, ...] = ()
    pruner: Pruner | None = None  # with what was computed for the model; None for a table from a file

    def save(self, path: str | Path) -> None:
        """Write the table as CSV, and the protocol beside it; `pelap pipeline prune --scores` reads them."""
        write_table(Path(path), self.table, protocol_beside(Path(path)), self.protocol)

    def plot(self) -> "Figure":
        """Every operator's score, least first, with its 95 % interval."""
        from pelap.report.figures.operators import operator_bars

        return _shown_in_notebooks(operator_bars(self.table, {}))

    def _shown(self) -> tuple[str, pd.DataFrame]:
        made = self.protocol
        where = f" of {made['denoiser']}" if "denoiser" in made else ""
        how = f", {made['num_latents']} latents of {made['num_seeds']} seeds" if "num_latents" in made else ""
        agree = made.get("rank_correlation")
        seeds = "" if agree is None else f", rank correlation between seeds {agree:.3f}"
        rows = self.table[[column for column in SHOWN if column in self.table]]
        if len(rows) > 2 * NUM_SHOWN:
            rows = pd.concat([rows.head(NUM_SHOWN), rows.tail(NUM_SHOWN)])
        return f"scores of {len(self.table)} operators{where}{how}{seeds}; least and most", rows


@dataclass(frozen=True, repr=False, eq=False)
class PruningPlan(_Shown):
    """Operators to remove, all at once, and what takes their places; nothing is done to a network yet."""

    plan: Plan
    scores: Scores | None = None  # what it was made from
    measured_time_reduction: float | None = None  # share of the denoiser's time that it saves by the clock
    made_with: Mapping[str, Any] = field(default_factory=dict)  # `how`, where the scores are not there

    @property
    def operators(self) -> list[str]:
        """Their names."""
        return [entry.operator for entry in self.plan.operators]

    @property
    def table(self) -> pd.DataFrame:
        """A row an operator, with its score and cost where they are known."""
        rows = [(each.operator, each.replacement and each.replacement.name) for each in self.plan.operators]
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

    def _shown(self) -> tuple[str, pd.DataFrame]:
        saved = f"time saved {self.plan.time_reduction:.1%} by the scores"
        if self.measured_time_reduction is not None:
            saved += f", {self.measured_time_reduction:.1%} measured"
        title = f"plan of {len(self.operators)} operators; {saved}; {self.plan.num_params:,} parameters"
        return title, self.table


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

    metrics: dict[str, dict[str, float]]  # by row; the row ``real`` is of other real pictures, the floor
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
        return _shown_in_notebooks(_side_by_side(self.table, self.samples))

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


def _side_by_side(table: pd.DataFrame, samples: Mapping[str, torch.Tensor]) -> "Figure":
    """Quality against time, lower left is better; below it pictures of every model from the same noise."""
    from pelap.report.figures.style import INK, looks, panels, titles
    from pelap.report.tables import SURE, quality_column

    figure, (axis, strip) = panels(1, (7.2, 3.6 + 0.9 * len(samples)), rows=2)
    axis.get_gridspec().set_height_ratios([3.2, 0.9 * len(samples)])  # type: ignore[union-attr]
    quality, time = quality_column(table), "image_ms" if "image_ms" in table else "latency_ms"
    if quality is not None and time in table:
        errors = SURE * table.get(f"{quality.key}_se", pd.Series(0.0, index=table.index))
        for name, look in looks(str(each) for each in table.index[table[time].notna()]).items():
            x, y = table[time][name], table[quality.key][name]
            axis.errorbar(x, y, errors[name], color=look.colour, marker=look.marker, markersize=8, capsize=3)
            axis.annotate(name, (x, y), xytext=(8, 5), textcoords="offset points", fontsize=9, color=INK)
        axis.margins(0.25)
        titles(axis, x="time per image (ms)" if time == "image_ms" else "time per pass (ms)", y=quality.title)
    framed = (nn.functional.pad(images, (0, 1, 0, 1), value=255) for images in samples.values())
    rows = [torch.cat(list(images), dim=-1) for images in framed]  # (C, H, N * W)
    strip.imshow(torch.cat(rows, dim=-2).permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", aspect="auto")
    height = rows[0].shape[-2]
    strip.set_yticks([height * (place + 0.5) for place in range(len(rows))], list(samples), color=INK)
    strip.set_xticks([])
    strip.grid(visible=False)
    return figure


def _shown_in_notebooks(figure: "Figure") -> "Figure":
    """Jupyter asks for this; figures that pyplot did not make have none of it."""
    from pelap.report.figures.style import to_png

    figure._repr_png_ = lambda: to_png(figure)  # type: ignore[attr-defined]
    return figure

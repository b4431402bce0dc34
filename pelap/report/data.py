"""What the report is made from: a run's tables, dictionaries and pictures, already read."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from pelap.core.listing import changed
from pelap.report.figures.budget import measured
from pelap.report.modality import ModalityNames, modality_names
from pelap.report.rows import CACHED, PRUNED
from pelap.report.tables import metrics_frame, quality_column


@dataclass(frozen=True)
class RunData:
    """One run. Column names are those of the files that the stages write."""

    dataset: str
    seed: int
    metrics: Mapping[str, Mapping[str, float | None]]
    protocol: Mapping[str, Any]
    history: Mapping[str, pd.DataFrame]
    """Training losses by step, per variant."""
    validation: Mapping[str, pd.DataFrame]
    """Losses on test pictures by epoch, per variant."""
    collapse: pd.DataFrame
    """Verdict, reason and numbers, a row a variant."""
    epochs: pd.DataFrame
    """The same numbers after every epoch, of all variants."""
    timesteps: pd.DataFrame
    """Noise loss and its floor in bins of time steps, of all variants."""
    masks: pd.DataFrame
    scores: pd.DataFrame
    """A row an operator."""
    score_protocol: Mapping[str, Any]
    """How they were scored."""
    changes: pd.DataFrame
    """Operators before and after pruning, of every plan, the whole denoiser first."""
    prune_result: Mapping[str, Mapping[str, Any]]
    """What was promised and what was measured, by plan."""
    distill: pd.DataFrame
    """Losses by step, of every student."""
    distill_validation: pd.DataFrame
    """Held-out losses and, if it was measured, the quality on the way."""
    students: Mapping[str, Mapping[str, Any]]
    """How each student was trained, and which step of it was kept."""
    latencies: pd.DataFrame
    """Times of one pass by model, batch size and mode; no row where nothing was timed."""
    budget: pd.DataFrame
    """Time per image and quality by model and number of sampling steps; no row where nothing was timed."""
    differences: pd.DataFrame
    """Frechet distances of one model less those of another, with standard errors."""
    samples: Mapping[str, bytes]
    """PNG grids by model, from the same noise; `real` holds train pictures."""
    reconstructions: Mapping[str, bytes]
    """PNG grids by model; `real` holds the originals."""
    sounds: Mapping[str, bytes]
    """WAV files by model, of the first samples one after the other; empty where models make pictures."""

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The metrics as a table."""
        return metrics_frame(self.metrics, self.scored)

    @property
    def modality_names(self) -> ModalityNames:
        """What the models make."""
        return modality_names(self.protocol)

    @property
    def timed(self) -> bool:
        """Whether times were measured."""
        return "latency_ms" in self.frame

    @property
    def scored(self) -> str | None:
        """The variant whose UNet was pruned."""
        return self.protocol.get("scored_variant")

    @property
    def models(self) -> list[str]:
        """Everything with a colour of its own, in the table's order."""
        return list(dict.fromkeys([*self.metrics, *self.history, *self.students, *self.cached]))

    @property
    def plans(self) -> list[str]:
        """The plans of pruning, in their order."""
        return list(self.prune_result)

    @property
    def cached(self) -> list[str]:
        """Rows of the scored variant whose sampling steps share deep features."""
        return [f"{CACHED}-{interval}" for interval in self.protocol.get("deepcache_intervals", [])]

    @property
    def denoisers(self) -> list[str]:
        """The scored variant and what became of it: the rows that are compared at equal time."""
        dense = [] if self.scored is None else [self.scored]
        return [*dense, *(f"{PRUNED}-{plan}" for plan in self.plans), *self.students, *self.cached]

    @cached_property
    def points(self) -> pd.DataFrame:
        """Time per image and quality of `denoisers`, as `figures_budget.draw` takes them."""
        column = quality_column(self.frame)
        if column is None or column.key not in self.budget:
            return pd.DataFrame()
        return measured(self.budget[self.budget["model"].isin(self.denoisers)], column.key)

    @cached_property
    def replaced(self) -> dict[str, str]:
        """What stands in the place of each operator that the first plan replaced."""
        return self.replaced_by(self.plans[0]) if self.plans else {}

    def replaced_by(self, plan: str) -> dict[str, str]:
        """What stands in the place of each operator that a plan replaced."""
        rows = self.changed_by(plan).iloc[1:]
        return dict(zip(rows["operator"], rows["action"], strict=True))

    def changed_by(self, plan: str) -> pd.DataFrame:
        """The whole denoiser and the replaced operators of a plan."""
        return changed(self.changes[self.changes["plan"] == plan])

"""What the report is made from: a run's tables, dictionaries and pictures, already read."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from pelap.report.changes import changed
from pelap.report.tables import metrics_frame


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
    """Operators before and after pruning, the whole denoiser first."""
    prune_result: Mapping[str, Any]
    distill: pd.DataFrame
    samples: Mapping[str, bytes]
    """PNG grids by model, from the same noise; `real` holds train pictures."""
    reconstructions: Mapping[str, bytes]
    """PNG grids by model; `real` holds the originals."""

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The metrics as a table."""
        return metrics_frame(self.metrics, self.scored)

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
        return list(dict.fromkeys([*self.metrics, *self.history]))

    @cached_property
    def replaced(self) -> dict[str, str]:
        """What stands in the place of each operator that pruning replaced."""
        rows = changed(self.changes).iloc[1:]
        return dict(zip(rows["operator"], rows["action"], strict=True))

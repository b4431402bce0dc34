"""The collapse of every variant as cells for the page: a verdict in words, and the numbers behind it."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import pandas as pd

from pelap.report.tables import DASH, number

Row: TypeAlias = "pd.Series[Any]"


@dataclass(frozen=True)
class Term:
    """A column of the table and what it means."""

    key: str
    name: str
    decimals: int
    text: str

    def cell(self, row: Row) -> str:
        """The number of a row."""
        return number(row[self.key], self.decimals)


class ActiveTerm(Term):
    """Open channels of all: `1 of 4`."""

    def cell(self, row: Row) -> str:
        """Both numbers of a row, the second where it is known."""
        text = super().cell(row)
        total = row.get("latent_channels", float("nan"))
        return text if DASH in text or pd.isna(total) else f"{text} of {number(total, 0)}"


TERMS = (
    Term("mean_mask", "mean mask", 4,
         "Mean of the mask over channels and test pictures: 1 lets everything through, 0 nothing. Of "
         "a variant without mask it is 1."),
    ActiveTerm("active_channels", "active channels", 0,
               "Channels whose mean mask is above the threshold, of all that the latent has."),
    Term("unet_input_std", "UNet input std", 4,
         "Standard deviation of what the UNet sees, averaged over the active channels (over all of "
         "them where every one is off); the noise that is added to it has 1, and near 0 the latent is"
         " gone."),
    Term("diffusion_loss", "diffusion loss", 4,
         "Mean squared error of the predicted noise on test pictures."),
    Term("gaussian_floor", "Gaussian floor", 4,
         "That error for the best affine predictor that sees each latent value by itself. A reference"
         " for this latent scale, no lower bound: a network that uses structure goes below it."),
    Term("floor_ratio", "floor ratio", 2,
         "Diffusion loss divided by the Gaussian floor: comparable between latent scales, which the "
         "loss alone is not."),
    Term("zero_latent_loss", "zero-latent loss", 4,
         "The same UNet's error where the clean latent is 0 and only noise comes in. The closer to "
         "the diffusion loss, the less difference the latent makes to the UNet."),
    Term("zero_latent_floor", "zero-latent floor", 4,
         "The least error that a UNet of this structure can reach there: 0 where it begins with a "
         "convolution, more where a norm comes first and takes the noise's own scale away."),
    Term("recon_mse", "recon. from z", 2,
         "Squared error of pictures decoded from the plain latent, summed over the values of a "
         "picture."),
    Term("masked_recon_mse", "recon. from z·m", 2,
         "The same, decoded from the masked latent, which is all that sampling can give; far above "
         "the other, the decoder has never learned to use the mask."),
    Term("hard_recon_mse", "recon. from hard mask", 2,
         "The same, from the masked latent with the channels below the threshold set to 0: what is "
         "lost when they are taken out."),
)  # fmt: skip
"""The most telling columns of collapse.csv; docs/collapse.md defines all."""


def numbers(table: pd.DataFrame) -> dict[str, Any]:
    """Explanations and cells of the columns that the table has."""
    shown = [term for term in TERMS if term.key in table]
    rows = [(row["variant"], [term.cell(row) for term in shown]) for _, row in table.iterrows()]
    return {"terms": shown, "rows": rows}


def verdicts(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Variant, verdict and reason of every row."""
    return list(table[["variant", "verdict", "reason"]].itertuples(index=False, name=None))

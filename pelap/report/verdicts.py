"""The one rule for a difference: its interval, its p-values, and a word that says no more than they do.

Positive differences are worse, unless it is said otherwise: what is compared is a distance or a loss.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from pelap.core.errors import ConfigError

LEVEL = 0.05  # of a family: probability of a wrong `better` or `worse`, and of a wrong `equivalent`
SAME = "not told apart"  # may be chance; no proof that the two are alike
NO_VERDICT = "no verdict"  # of a single seed, or of differences that do not vary
WITHIN = ", by less than the margin"  # follows `better` or `worse` where that is shown, too
VERDICTS = ("better", "worse", f"better{WITHIN}", f"worse{WITHIN}", "equivalent", SAME, NO_VERDICT)
_ROUNDING = 1e-12  # relative size below which a spread of differences is rounding, not data


def over_seeds(
    families: Iterable[ArrayLike], margin: float | None = None, higher_is_better: bool = False
) -> pd.DataFrame:
    """Verdicts on a family of paired differences over seeds, one row each, in their order.

    Args:
        families: Of each comparison the differences, a seed an entry; NaN counts as a seed without a value.
        margin: See `judged`.
        higher_is_better: Negative differences are worse.

    Returns:
        See `judged`; n counts the seeds with a value.
    """
    rows = []
    for differences in families:
        values = np.asarray(differences, dtype=np.float64)
        values = values[np.isfinite(values)]
        spread = np.ptp(values) if len(values) else 0.0
        steady = len(values) < 2 or spread <= _ROUNDING * np.abs(values).max()
        error = np.nan if steady else float(stats.sem(values))
        rows.append((values.mean() if len(values) else np.nan, error, len(values) - 1, len(values)))
    means, errors, freedom, counts = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    table = judged(-means if higher_is_better else means, errors, freedom, margin)
    if higher_is_better:
        table[["difference", "low", "high"]] = -table[["difference", "high", "low"]].to_numpy()
    table.insert(0, "n", counts.astype(int))
    return table


def judged(
    means: ArrayLike, errors: ArrayLike, freedom: ArrayLike, margin: float | None = None
) -> pd.DataFrame:
    """Verdicts on a family of estimated differences.

    `better` and `worse`: a two-sided t-test, corrected for the number of comparisons (Holm). `equivalent`:
    two one-sided tests, corrected alike, say that the difference lies within the margin on either side. Where
    either is shown, and the interval lies within the margin, it is better or worse "by less than the margin".

    Args:
        means: Differences (N,).
        errors: Their standard errors (N,); NaN or 0: none is known, and there is no verdict.
        freedom: Degrees of freedom of these (N,) or ().
        margin: In the unit of the differences, above 0: what is too small to matter. None: there is none.

    Returns:
        difference, low and high (95 % interval, not corrected), p_value, p_holm; with a margin p_equivalent
        (corrected, too); verdict, one of `VERDICTS`.

    Raises:
        ConfigError: The margin is not above 0.

    Source: Holm, 1979; Schuirmann, 1987, https://doi.org/10.1007/BF01068419
    """
    if margin is not None and not margin > 0:
        raise ConfigError(
            f"margin: {margin} is not above 0; give the largest difference that does not matter"
        )
    means, errors = (np.asarray(each, dtype=np.float64) for each in (means, errors))
    errors = np.where(np.isfinite(means) & (errors > 0), errors, np.nan)
    law: Any = stats.t(np.where(np.asarray(freedom) > 0, freedom, np.nan))
    half = law.ppf(1 - LEVEL / 2) * errors
    table = pd.DataFrame({"difference": means, "low": means - half, "high": means + half})
    table["p_value"] = 2 * law.sf(np.abs(means) / errors)
    table["p_holm"] = holm(table["p_value"])
    words = np.where(means > 0, "worse", "better")
    verdict = np.where(table["p_holm"] < LEVEL, words, SAME)
    if margin is not None:
        table["p_equivalent"] = holm(law.sf((margin - np.abs(means)) / errors))
        near = table["p_equivalent"] < LEVEL
        within = near & (np.maximum(-table["low"], table["high"]) < margin)
        told = np.where(within, np.char.add(verdict.astype(str), WITHIN), verdict)
        verdict = np.where(verdict == SAME, np.where(near, "equivalent", SAME), told)
    return table.assign(verdict=np.where(np.isnan(table["p_value"]), NO_VERDICT, verdict))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P-values (N,) of a family, each as if it were alone: Holm's step-down; NaN counts for nothing."""
    p = np.asarray(p_values, dtype=np.float64)
    result = np.full(p.shape, np.nan)
    order = np.flatnonzero(~np.isnan(p))[np.argsort(p[~np.isnan(p)], kind="stable")]
    scaled = p[order] * np.arange(len(order), 0, -1)
    result[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return result

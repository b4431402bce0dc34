"""The margin of a study's verdicts: what half of the sampling steps cost the dense model, in the same run.

Whoever samples with fewer steps accepts such a loss. It is read in the cells' budgets, so that it is in the
unit of what is judged, and of the same networks. A study whose cells were sampled with one number of steps
alone has none.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import stats

from pelap.report.verdicts import LEVEL

Place = tuple[str, ...]  # what seeds have in common, such as data set and metric
_PARTS = 2000  # of a distribution that is averaged over
REASON = "what half of the sampling steps cost the dense model"


def lost_by_steps(budget: pd.DataFrame, dense: str | None, metric: str) -> "pd.Series[float]":
    """What a cell's dense model loses by fewer sampling steps.

    Args:
        budget: Of one cell: columns model, steps and, where it was measured, the metric; less is better.
        dense: Its model at several numbers of steps; None: there is none.
        metric: What is lost, in its unit.

    Returns:
        By number of steps, the most of which lose 0.
    """
    own = budget[budget["model"] == dense].drop_duplicates("steps").set_index("steps")
    values = own[metric].astype(float) if metric in own else pd.Series(dtype=float)
    return values - values.get(values.index.max(), np.nan)


def half_steps_cost(budget: pd.DataFrame, dense: str | None, metric: str) -> float:
    """What half of them cost, NaN where the budget does not say; see `lost_by_steps`."""
    lost = lost_by_steps(budget, dense, metric)
    return float(lost.get(lost.index.max() / 2, np.nan))


def margins_of(costs: Iterable[tuple[Place, int, float]]) -> dict[Place, float]:
    """The mean over seeds of what half of the steps cost, where that is known and above 0.

    It is an estimate, whose spread over seeds no verdict takes into account: tables show it. What some seeds
    lack, and a cost that is no margin, are named on the terminal.

    Args:
        costs: Place, seed, and `half_steps_cost`.
    """
    places: dict[Place, dict[int, float]] = defaultdict(dict)
    for place, seed, cost in costs:
        places[place][seed] = cost
    found: dict[Place, float] = {}
    for place, own in places.items():
        known = [cost for cost in own.values() if math.isfinite(cost)]
        missing = [str(seed) for seed, cost in own.items() if not math.isfinite(cost)]
        margin = float(np.mean(known)) if known else math.nan
        if known and missing:
            print(f"{' '.join(place)}: nothing at seed {', '.join(missing)} of {REASON}")
        if margin > 0:
            found[place] = margin
        elif known:
            print(f"{' '.join(place)}: no margin, nothing is called equivalent: {REASON} is {margin:.3g}")
    return found


def seeds_needed(
    mean: float, std: float, margin: float, family: int = 1, power: float = 0.8, most: int = 100
) -> int | None:
    """How many seeds it takes to call a difference `equivalent`, if it is what was seen.

    Args:
        mean: True difference.
        std: Its true deviation between seeds, above 0.
        margin: As in `pelap.report.verdicts.judged`.
        family: Comparisons that it is the clearest of; Holm's correction is less for the others.
        power: With what probability, 0..1.
        most: Seeds beyond which nobody asks.

    Returns:
        None: even the most do not do.
    """
    for num in range(2, most + 1):
        # Given the deviation of a sample, which the chance of its size is averaged over, a mean has to lie
        # within what is left of the margin.
        seen = std * np.sqrt(stats.chi2(num - 1).ppf((np.arange(_PARTS) + 0.5) / _PARTS) / (num - 1))
        room = np.maximum(margin - stats.t(num - 1).ppf(1 - LEVEL / family) * seen / math.sqrt(num), 0)
        law = stats.norm(mean, std / math.sqrt(num))
        if np.mean(law.cdf(room) - law.cdf(-room)) >= power:
            return num
    return None

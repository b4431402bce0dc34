"""The scored operators as the report shows them: their fates, their places on an axis, their order."""

from collections.abc import Collection

import numpy as np
import pandas as pd

FATES = ("kept", "gone with a replaced one", "replaced")
"""What became of an operator; the figures draw them in this order, so that what was chosen lies on top."""

_TOPS = {
    "conv_in": "in", "block_in": "in", "down_blocks": "down", "block_down": "down", "mid_block": "mid",
    "block_mid": "mid", "up_blocks": "up", "block_up": "up", "conv_norm_out": "out", "conv_act": "out",
    "conv_out": "out",
}  # fmt: skip
"""First parts of names in the order in which diffusers' UNets and ours run them, and where that is."""
_PARTS = (
    "resnets", "attentions", "motion_modules", "downsamplers", "upsamplers", "norm", "group_norm", "proj_in",
    "transformer_blocks", "norm1", "act1", "nonlinearity", "conv1", "time_emb_proj", "time_proj", "norm2",
    "act2", "to_q", "to_k", "to_v", "to_out", "conv2", "conv", "conv_shortcut", "proj_out",
)  # fmt: skip
"""Parts of one block in the order in which it runs them; a number between them counts turns."""


def fate(name: str, replaced: Collection[str]) -> str:
    """One of `FATES`."""
    if name in replaced:
        return "replaced"
    inside = any(name.startswith(f"{other}.") for other in replaced)
    return "gone with a replaced one" if inside else "kept"


def places(scores: pd.DataFrame) -> pd.DataFrame:
    """Where scores and their intervals go on a logarithmic axis, which has no place for 0 and infinity.

    Returns:
        The columns score, low and high (NaN without an interval) and infinite, in the index of `scores`.
        What is 0 stands below the least positive number, an infinite score above the greatest finite one.
    """
    columns = {"score": "score", "low": "score_low", "high": "score_high"}
    table = pd.DataFrame({new: scores[old].astype(float) for new, old in columns.items()}, index=scores.index)
    infinite = np.isinf(table["score"])
    table = table.where(np.isfinite(table))
    positive = table[table > 0].to_numpy().ravel()
    positive = positive[np.isfinite(positive)]
    if len(positive):
        table = table.clip(lower=positive.min() / 2)
    ceiling = positive.max() * 1.5 if len(positive) else 1.0
    table["score"] = table["score"].where(~infinite, ceiling)
    table[["low", "high"]] = table[["low", "high"]].where(~infinite)
    return table.assign(infinite=infinite)


def outermost(scores: pd.DataFrame) -> pd.DataFrame:
    """Operators that lie in no other, in the order of execution, with their `section`.

    Names that are not like those of a known UNet come last, in the order of the names, numbers counted.
    """
    rows = scores[scores["parent"].isna()]
    names = sorted(rows["operator"], key=_place)
    rows = rows.set_index("operator").loc[names].reset_index()
    return rows.assign(section=[section(name) for name in names])


def section(name: str) -> str:
    """`in`, `down 0`, `mid`, `up 2` or `out`; empty where the name does not say."""
    top, *rest = name.split(".")
    where = _TOPS.get(top, "")
    return f"{where} {rest[0]}" if where and top.endswith("_blocks") and rest else where


def _place(name: str) -> tuple[object, ...]:
    """Sorts in the order of execution: by block, in it by turn with samplers last, in a turn by part."""
    top, *rest = name.split(".")
    if top not in _TOPS:
        return len(_TOPS), [_part(part) for part in (top, *rest)]
    block = int(rest.pop(0)) if rest and rest[0].isdigit() else 0
    turn = int(rest.pop(1)) if len(rest) > 1 and rest[1].isdigit() else 0
    last = bool(rest) and rest[0].endswith("samplers")
    return list(_TOPS).index(top), block, last, turn, [_part(part) for part in rest]


def _part(part: str) -> tuple[int, int, str]:
    if part.isdigit():
        return 0, int(part), ""
    return 1, _PARTS.index(part) if part in _PARTS else len(_PARTS), part


def median_by_section(scores: pd.DataFrame) -> dict[str, float]:
    """Median score of the outermost operators of each part of the network: in, down, mid, up and out."""
    rows = outermost(scores)
    part = [name.partition(" ")[0] for name in rows["section"]]
    return {str(name): float(group.median()) for name, group in rows.groupby(part, sort=False)["score"]}

"""What version 0.1 called what: its parameter files are refused with today's names, its results are read."""

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

KEYS = {  # by section; `*` is any name
    "train": {"at_once": "parallel_variants"},
    "variants.*": {"strength": "sparsity_key", "penalty": "sparsity_weight", "decode_from": "decoder_input"},
    "score": {"norm": "norm_replacement", "start": "replacement_init"},
    "prune": {"trials": "max_measurements", "singles": "single_operator_plans"},
    "prune.methods.*": {"rescore": "iterative_step"},
    "evaluate": {"dense_steps": "step_counts", "cache_intervals": "deepcache_intervals"},
    "info": {"strength": "sparsity_weight"},  # of a model folder
}
VALUES = {  # by today's key
    "decoder_input": {"z": "unmasked", "z*m": "masked"},
    "vae_training": {"first": "two_stage"},
    "norm_replacement": {"scale_shift": "affine"},
    "replacement_init": {"fitted": "least_squares"},
    "selection": {"order": "lowest_first", "ratio": "per_ms"},
}
GONE = {"score": ("num_resamples",)}  # keys that nothing reads any more
STEPS = {"scale_shift": "affine", "regroup": "channel_pool"}  # of replacements, joined by `+`
OLD_STEPS = {step: old for old, step in STEPS.items()}
ROWS = {"longer": "dense-finetuned"}  # of tables: the student of the default run


class Outdated(NamedTuple):
    """A key or value of 0.1."""

    path: str  # of the section
    old: str
    key: str  # empty where there is none any more
    value: Any
    holder: MutableMapping[str, Any]  # the section, or all of the file where that has dotted keys
    written: str  # the old key, as it stands there

    def __str__(self) -> str:
        if not self.key:
            return f"{self.path}.{self.old} is no more"
        if self.old != self.key:
            return f"{self.path}.{self.old} is {self.key}"
        return f"{self.path}.{self.key}: {self.holder[self.written]} is {self.value}"


def outdated(raw: Mapping[str, Any]) -> list[Outdated]:
    """Every key and value of a parameter file that has another name today."""
    return [
        Outdated(path, old, key, value, holder, written)
        for pattern, names in KEYS.items()
        for path, old, holder, written in _entries(raw, pattern.split("."))
        for was in [holder[written]]
        for key in ["" if old in GONE.get(pattern, ()) else names.get(old, old)]
        for value in [VALUES.get(key, {}).get(was, was) if isinstance(was, str) else was]
        if (key, value) != (old, was)
    ]


def _entries(
    raw: Any, pattern: list[str], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, MutableMapping[str, Any], str]]:
    """Every key of the sections of a pattern: the section's path, the key, what holds it, as what."""
    if not isinstance(raw, MutableMapping):
        return
    for written in raw:
        names = [written] if path else str(written).split(".")  # at the top a key may be dotted
        if not all(wanted in ("*", name) for wanted, name in zip(pattern, names, strict=False)):
            continue
        if len(names) == len(pattern) + 1:
            yield ".".join((*path, *names[:-1])), names[-1], raw, written
        elif len(names) <= len(pattern):
            yield from _entries(raw[written], pattern[len(names) :], (*path, *names))


def rename(raw: MutableMapping[str, Any]) -> None:
    """Put today's names in place, each where the old one stood; comments of ruamel.yaml's mappings stay."""
    for each in outdated(raw):
        holder, written = each.holder, each.written
        today = f"{written.removesuffix(each.old)}{each.key}" if each.key else ""
        comments = getattr(getattr(holder, "ca", None), "items", {})
        for name in list(holder)[list(holder).index(written) :]:
            comment = comments.get(name)
            key, value = (today, each.value) if name == written else (name, holder[name])
            del holder[name]  # to stand behind what went before
            if not key:
                continue
            holder[key] = value
            if comment:
                comments[key] = comment


def renamed(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a section of `KEYS` that 0.1 may have written, under today's names."""
    name, _, entry = section.partition(".")
    inner = copy.deepcopy(dict(values))
    rename({name: {entry: inner} if entry else inner})
    return inner


def renamed_steps(name: str, names: Mapping[str, str] = STEPS) -> str:
    """A replacement's name of today, or by another table of its steps."""
    return "+".join(names.get(step, step) for step in name.split("+"))


def renamed_scores(table: "pd.DataFrame") -> "pd.DataFrame":
    """A table of scores with today's names of replacements; whether it is one is not looked at."""
    if "replacement" not in table:
        return table
    return table.assign(replacement=table["replacement"].map(renamed_steps, na_action="ignore"))

"""LD-Pruner's score: how much the generated latents change without an operator (section 2.3).

score = ||avg(L_orig) - avg(L_mod)||_2 + ||std(L_orig) - std(L_mod)||_2, with avg and std taken elementwise
over the set of latents, and the norm over the elements of a latent.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import nn

from pelap.config import ScoreParams
from pelap.config.pruning import Formula
from pelap.core import files
from pelap.core.errors import DataError, ModelError, finite
from pelap.core.rng import generator
from pelap.scoring.statistic import Change, LatentSet, change_of, quantile, standard_error
from pelap.surgery.operators import Operator, in_passes, replaced_on_slices
from pelap.surgery.replacements import Replacement

Denoise = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""Noise (B, ...) and the items that its rows are, to latents of the same shape, through the denoiser under
examination. A row of the result depends on its noise and its item alone."""

ORIGINALS = "score: the untouched model's latents are not finite"
MEND = "train it longer, mend it, or use other steps or another scheduler"
ORIGINAL = ".original"  # name of the untouched model's latents in a store, which no submodule can have

RUNGS = (8, 4, 2, 1)  # with early stop, operators are compared after 1/8, 1/4 and 1/2 of the latents
MIN_RUNG = 4  # latents below which nothing is stopped


class LatentStore:
    """Sets of latents by name that grow at their end.

    Args:
        folder: One safetensors file a name; what is there already counts. None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._memory: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        if folder is not None and folder.is_dir():
            self._counts = {path.stem: n for path in folder.iterdir() if (n := _count(path))}

    def count(self, name: str) -> int:
        """How many latents there are of a name."""
        return self._counts.get(name, 0)

    def get(self, name: str) -> torch.Tensor:
        """The latents (N, ...) of a name, on the CPU."""
        if self._folder is None:
            return self._memory[name]
        return files.load_tensors(self._path(self._folder, name))[0]["latents"]

    def put(self, name: str, start: int, latents: torch.Tensor) -> None:
        """Latents (n, ...) are a name's from item `start` on, which is one of its own or follows its last."""
        latents = latents.detach().cpu()
        whole = torch.cat([self.get(name)[:start], latents]) if start else latents.contiguous()
        if self._folder is None:
            self._memory[name] = whole
        else:
            files.save_tensors(self._path(self._folder, name), {"latents": whole})
        self._counts[name] = len(whole)

    @staticmethod
    def _path(folder: Path, name: str) -> Path:
        return folder / f"{name}.safetensors"


def _count(path: Path) -> int:
    """Latents in a file; 0 for one that cannot be read, which is then made anew."""
    try:
        return len(files.load_tensors(path)[0]["latents"])
    except (DataError, KeyError):
        return 0


@dataclass(frozen=True)
class Scores:
    """What scoring gave."""

    table: pd.DataFrame  # a row an operator, least score first; see `score_operators`
    original: torch.Tensor  # latents of the untouched model (N, ...) on the CPU
    # Spearman's, of the scores from one set with those from another, the mean over pairs of sets, of the
    # operators that were scored to the end.
    rank_correlation: float | None
    num_rows: int  # rows of noise that were denoised for the operators, N an operator without early stop
    protocol: dict[str, Any] = field(default_factory=dict)  # what they were made with, as JSON


@torch.no_grad()
def score_operators(
    unet: nn.Module,
    denoise: Denoise,
    operators: Sequence[Operator],
    replacements: Mapping[str, Replacement],
    noise: torch.Tensor,
    params: ScoreParams,
    store: LatentStore | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> Scores:
    """Score every operator, replacing one at a time.

    Several operators share a batch: each owns a slice of it, on which its replacement works. The batch
    repeats the same noise for every slice.

    Args:
        unet: The denoiser that `denoise` uses, in evaluation mode. Its convolutions are channels-last after.
        denoise: The whole denoising process.
        operators: From `find_operators`.
        replacements: From `fit_replacements`.
        noise: (N, ...), N >= 2, the starting points of the set of latents; row i is item i.
        params: How. Several operators share a pass of `batch_size` rows of noise, or one takes several. Item
            i is of seed i % `num_seeds`; the rank correlation is between seeds. With `early_stop` that share
            of the operators, those of the lowest debiased scores, is usually scored to the end.
        store: Where latents are kept, and where those of an interrupted call are found.
        report: Called with the number of rows done, of N times the number of operators.

    Returns:
        The table has the columns operator, kind, replacement, parent, num_calls, avg_dist, std_dist,
        score, score_low, score_high (95 % interval by the jackknife), score_debiased, avg_noise, std_noise
        (what chance adds to the squares of the parts), num_latents (that these come from) and stopped_early.

    Raises:
        ModelError: The same noise gives other latents the next time, or in another batch, or the untouched
            model's are not finite.
    """
    store = store or LatentStore()
    order = _order(len(noise), params)
    item_at = order.tolist()

    def denoised(noise: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        return denoise(noise, [item_at[place] for place in places])

    noise = _channels_last(unet, noise[order])
    _check_denoise(denoised, noise)
    for items in _chunks(store.count(ORIGINAL), len(noise), params.batch_size):
        store.put(ORIGINAL, items.start, denoised(noise[items.start : items.stop], items))
    original = finite(store.get(ORIGINAL), ORIGINALS, MEND)
    running, begin = list(operators), 0
    num_wanted = math.ceil((params.early_stop or 1.0) * len(operators))
    for end in _rungs(len(noise), params.early_stop):
        for group, items in _work(running, range(begin, end), params.batch_size, store):
            rows = torch.cat([noise[items.start : items.stop]] * len(group))
            replaced = {operator.name: replacements[operator.name] for operator in group}
            with replaced_on_slices(unet, replaced, len(items)):
                latents = denoised(rows, [*items] * len(group))
            for name, part in zip(replaced, latents.chunk(len(group)), strict=True):
                store.put(name, items.start, part)
            report(_num_done(operators, store))
        begin = end
        if end < len(noise):
            seen = LatentSet(original[:end])
            running = _still_running(running, num_wanted, seen, params.formula, store)
    if _num_done(operators, store) < len(operators) * len(noise):
        report(len(operators) * len(noise))
    return _scores(operators, original, order.argsort(), params, store)


def _order(num: int, params: ScoreParams) -> torch.Tensor:
    """Which item is looked at when, (num,) int64.

    Where operators are compared after a part of the items, that part has to stand for all: it is drawn, the
    same of every set, as items go through prompts or classes in their order.
    """
    items = torch.arange(num)
    if params.early_stop is None:
        return items
    place = torch.randperm(num, generator=generator(0, "score order"))
    return place[items // params.num_seeds].argsort(stable=True)


def _channels_last(unet: nn.Module, noise: torch.Tensor) -> torch.Tensor:
    """Lay out 2-D convolutions and noise the way that kernels are fastest in; values stay as they are."""
    for module in unet.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return noise.contiguous(memory_format=torch.channels_last) if noise.ndim == 4 else noise


def _check_denoise(denoise: Denoise, noise: torch.Tensor) -> None:
    """Refuse what would make scores of noise: chance between two calls, or between rows of a batch."""
    first, again = (denoise(noise[:2], range(2)) for _ in range(2))
    alone = denoise(noise[:1], range(1))
    finite(first, ORIGINALS, MEND)
    scale = float(first.std())
    change, mixing = float((first - again).abs().max()), float((first[:1] - alone).abs().max())
    if change > 1e-4 * scale:
        raise ModelError(
            f"score: the same noise gives other latents the next time (by {change:.2g}, their standard "
            f"deviation is {scale:.2g}); put it into evaluation mode, and draw the noise of steps by item"
        )
    if mixing > 1e-2 * scale:
        raise ModelError(
            f"score: a latent depends on the others of its batch (by {mixing:.2g}, their standard deviation "
            f"is {scale:.2g}); put the model into evaluation mode, or use norms that do not look across it"
        )


def _rungs(num_latents: int, early_stop: float | None) -> list[int]:
    """After how many latents to look which operators are out, the last being all of them."""
    if early_stop is None:
        return [num_latents]
    return sorted({min(num_latents, max(MIN_RUNG, num_latents // part)) for part in RUNGS})


def _chunks(start: int, end: int, size: int) -> Iterator[range]:
    for first in range(start, end, size):
        yield range(first, min(first + size, end))


def _work(
    operators: Sequence[Operator], items: range, rows: int, store: LatentStore
) -> Iterator[tuple[list[Operator], range]]:
    """Operators to examine together, and the items to do it on, until each has them all.

    Who shares a pass is the same whatever is there already: of another pass a row has other last digits, and
    what was interrupted has to end as if it had not been.
    """
    for some in _chunks(items.start, items.stop, rows):
        for group in in_passes(operators, max(1, rows // len(some))):
            if any(store.count(operator.name) < some.stop for operator in group):
                yield group, some


def _num_done(operators: Sequence[Operator], store: LatentStore) -> int:
    return sum(store.count(operator.name) for operator in operators)


def _still_running(
    running: Sequence[Operator], num_wanted: int, original: LatentSet, formula: Formula, store: LatentStore
) -> list[Operator]:
    """Those that may be among the lowest `num_wanted`: fewer others are lower by more than chance.

    What chance adds to a score is taken off first: it is other for every operator, and at few latents larger
    than what many of them change.
    """
    latents = (store.get(operator.name)[: original.num] for operator in running)
    changes = [Change(original, LatentSet(each)) for each in latents]
    scores = torch.tensor([change.debiased(formula) for change in changes], dtype=torch.float64)
    replicates = torch.stack([change.replicates(formula) for change in changes])  # (O, N)
    above = scores[:, None] - scores  # (O, O): how far each is above each other one
    errors = standard_error(replicates[:, None] - replicates)
    lower = (above > quantile(original.num) * errors) | (scores[:, None].isinf() & scores.isfinite())
    may_be = (lower.sum(dim=1) < num_wanted).tolist()
    return [operator for operator, stays in zip(running, may_be, strict=True) if stays]


def _scores(
    operators: Sequence[Operator],
    original: torch.Tensor,
    place_of: torch.Tensor,
    params: ScoreParams,
    store: LatentStore,
) -> Scores:
    """Scores of latents in the order that they were looked at; `place_of` (N,) says where an item is."""
    sets: dict[int, LatentSet] = {}  # of the untouched model, by their number
    rows, by_seed = [], []
    first, original = original, original[place_of]
    for operator in operators:
        latents = store.get(operator.name)
        num = len(latents)
        whole = num == len(original)
        untouched, latents = (original, latents[place_of]) if whole else (first[:num], latents)
        if num not in sets:
            sets[num] = LatentSet(untouched)
        change = Change(sets[num], LatentSet(latents))
        (avg_dist, std_dist), (avg_noise, std_noise) = change.parts.tolist(), change.noise.tolist()
        low, high = change.interval(params.formula)
        row = {
            "operator": operator.name,
            "kind": operator.kind,
            "replacement": operator.replacement.name,
            "parent": operator.parent,
            "num_calls": operator.num_calls,
            "avg_dist": avg_dist,
            "std_dist": std_dist,
            "score": change.score(params.formula),
            "score_low": low,
            "score_high": high,
            "score_debiased": change.debiased(params.formula),
            "avg_noise": avg_noise,
            "std_noise": std_noise,
            "num_latents": num,
            "stopped_early": not whole,
        }
        rows.append(row)
        if whole:
            step = params.num_seeds
            changes = [change_of(original[i::step], latents[i::step]) for i in range(step)]
            by_seed.append([change.score(params.formula) for change in changes])
    table = pd.DataFrame(rows).sort_values(["score", "operator"], ignore_index=True)
    return Scores(table, original, _rank_correlation(by_seed), int(table["num_latents"].sum()))


def _rank_correlation(by_set: Sequence[Sequence[float]]) -> float | None:
    """Mean Spearman correlation between the sets' scores; None where there is none."""
    if len(by_set) < 3 or len(by_set[0]) < 2:
        return None
    columns = list(zip(*by_set, strict=True))
    if any(len(set(column)) < 2 for column in columns):
        return None  # without differences there is no order
    pairs = [float(spearmanr(first, second).statistic) for first, second in combinations(columns, 2)]
    return sum(pairs) / len(pairs)

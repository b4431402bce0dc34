"""Scores are those of the plain loop, how sure they are, and that nothing else gets into them."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from tiny import tiny_model
from tiny_networks import CASES, Case, awake
from torch import nn

from pelap.config import SamplerParams, ScoreParams
from pelap.config.pruning import Formula
from pelap.core.device import full_precision
from pelap.core.errors import ModelError
from pelap.diffusion.reverse import model_denoiser
from pelap.scoring import score as score_module
from pelap.scoring.score import ORIGINAL, Denoise, LatentStore, Scores, score_operators
from pelap.scoring.statistic import LatentSet, change_of
from pelap.surgery.apply import apply_plan, removed_operators
from pelap.surgery.fit import fit_replacements
from pelap.surgery.operators import Operator, find_operators
from pelap.surgery.plan import Plan, PlanEntry
from pelap.surgery.replacements import Replacement, ReplacementSpec, ScaleShift

FORMULAS: tuple[Formula, ...] = ("avg+std", "avg", "std", "avg*std")


class Ready(NamedTuple):
    """A network with everything that scoring it takes."""

    case: Case
    operators: list[Operator]
    replacements: dict[str, Replacement]
    noise: torch.Tensor

    def score(self, denoise: Denoise | None = None, **options: Any) -> Scores:
        kept = {name: options.pop(name) for name in ("store", "report", "operators") if name in options}
        operators = kept.pop("operators", self.operators)
        run = denoise or self.case.denoise
        params = settings(len(self.noise), **options)
        return score_operators(
            self.case.network, run, operators, self.replacements, self.noise, params, **kept
        )


def settings(num_latents: int, num_seeds: int = 1, batch_size: int = 128, **more: Any) -> ScoreParams:
    return ScoreParams(num_latents=num_latents, num_seeds=num_seeds, batch_size=batch_size, **more)


@cache
def ready(name: str, num: int = 5) -> Ready:
    case = CASES[name]()
    operators = case.find("affine")
    replacements = fit_replacements(case.network, operators, case.run(), "least_squares")
    return Ready(case, operators, replacements, case.noise(num))


@cache
@torch.no_grad()
def plain_loop(name: str) -> dict[str, tuple[float, float]]:
    """avg_dist and std_dist of one operator after another, each taken out by surgery."""
    case, operators, replacements, noise = ready(name)
    items = range(len(noise))
    original = case.denoise(noise, items)
    found = {}
    for operator in operators:
        plan = Plan((PlanEntry(operator.name, operator.kind, operator.replacement),))
        pruned = Case(apply_plan(case.network, plan, replacements), case.predict, case.shape)
        found[operator.name] = tuple(change_of(original, pruned.denoise(noise, items)).parts.tolist())
    return found


class Recorder:
    """A denoising run that keeps what it is asked for, and may fail."""

    def __init__(self, ready: Ready, fail_at: int = 0) -> None:
        self.ready, self.fail_at = ready, fail_at
        self.items: list[list[int]] = []

    def __call__(self, rows: torch.Tensor, items: Sequence[int]) -> torch.Tensor:
        self.items.append(list(items))
        if len(self.items) == self.fail_at:
            raise RuntimeError("broken off")
        assert torch.equal(rows, self.ready.noise[list(items)])
        return self.ready.case.denoise(rows, items)

    @property
    def num_rows(self) -> int:
        return sum(len(items) for items in self.items)


def is_clean(network: nn.Module) -> bool:
    return not removed_operators(network) and not any(module._forward_hooks for module in network.modules())


# Batched scores


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows_per_batch"),
    # Fewer rows than latents, as many, a number that they do not divide, and room for many operators.
    [("plain", n) for n in (2, 5, 13, 64)]
    + [("light", n) for n in (3, 17, 64)]
    + [("dit", n) for n in (3, 17, 64)]
    + [("unet2d", 32), ("conditional", 2), ("conditional", 33)],
)
def test_batched_scores_equal_the_plain_loop(name: str, rows_per_batch: int) -> None:
    denoiser = ready(name)
    expected = plain_loop(name)
    chosen = denoiser.operators
    if (name, rows_per_batch) == ("conditional", 2):
        chosen = chosen[::7]
    scores = denoiser.score(Recorder(denoiser), batch_size=rows_per_batch, operators=chosen)
    tolerance = 1e-5 * scores.original.std().item() * scores.original[0].numel() ** 0.5
    assert len(scores.table) == len(chosen)
    for row in scores.table.itertuples():
        avg_dist, std_dist = expected[row.operator]
        assert row.avg_dist == pytest.approx(avg_dist, abs=tolerance, rel=0), row.operator
        assert row.std_dist == pytest.approx(std_dist, abs=tolerance, rel=0), row.operator
    assert scores.table["score"].max() > 1e3 * tolerance
    assert is_clean(denoiser.case.network)


def test_operators_share_a_batch_but_not_those_whose_rows_are_not_its_rows() -> None:
    denoiser = ready("plain")
    recorder = Recorder(denoiser)
    denoiser.score(recorder, batch_size=15)
    sizes = sorted(len(items) for items in recorder.items)
    # The checks' 2, 2 and 1; the original; 5 operators by threes; and 2 that are alone.
    assert sizes == [1, 2, 2, 5, 5, 5, 10, 15]
    assert recorder.items[4] == [0, 1, 2, 3, 4] * 3


def test_table_says_what_was_scored() -> None:
    denoiser = ready("light")
    scores = denoiser.score(batch_size=64)
    table = scores.table
    by_name = {operator.name: operator for operator in denoiser.operators}
    assert list(table["score"]) == sorted(table["score"])
    assert set(table["operator"]) == set(by_name)
    for row in table.itertuples():
        operator = by_name[row.operator]
        assert (row.kind, row.replacement) == (operator.kind, operator.replacement.name)
        parent = None if pd.isna(row.parent) else row.parent
        assert (parent, row.num_calls) == (operator.parent, operator.num_calls)
        assert row.score_low <= row.score <= row.score_high
        assert (row.num_latents, row.stopped_early) == (5, False)
    torch.testing.assert_close(scores.original, denoiser.case.denoise(denoiser.noise, range(5)).detach())
    assert scores.num_rows == 5 * len(table)
    assert scores.rank_correlation is None


# The definition


def by_hand(formula: str, original: np.ndarray, modified: np.ndarray) -> float:
    avg = math.sqrt(((original.mean(0) - modified.mean(0)) ** 2).sum())
    std = math.sqrt(((original.std(0, ddof=1) - modified.std(0, ddof=1)) ** 2).sum())
    return {"avg+std": avg + std, "avg": avg, "std": std, "avg*std": avg * std}[formula]


@pytest.mark.parametrize("formula", FORMULAS)
def test_formula_is_the_definition(formula: Formula) -> None:
    original, modified = torch.randn(6, 4, 2, 2), 2 * torch.randn(6, 4, 2, 2) + 1
    expected = by_hand(formula, original.double().numpy(), modified.double().numpy())
    assert change_of(original, modified).score(formula) == pytest.approx(expected)


def with_stand_in(denoiser: Ready, name: str, scale: float) -> Ready:
    """One norm replaced by a scale that is too much."""
    step = ScaleShift(next(o for o in denoiser.operators if o.name == name).input_shape[1], False)
    nn.init.constant_(step.scale, scale)
    return denoiser._replace(replacements=denoiser.replacements | {name: Replacement("input", [step])})


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_latents_that_are_not_finite_score_infinitely_and_come_last(value: float) -> None:
    denoiser = ready("light", 6)
    name = "block_down.norm2"
    scores = with_stand_in(denoiser, name, value).score(batch_size=64, num_seeds=2)
    last = scores.table.iloc[-1]
    assert (last["operator"], last["score"]) == (name, math.inf)
    assert (last["score_low"], last["score_high"]) == (math.inf, math.inf)
    # Its neighbours in the batch know nothing of it.
    others = scores.table[:-1]
    usual = denoiser.score(batch_size=64).table
    usual = usual[usual["operator"] != name].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, usual)
    assert np.isfinite(others["score"]).all()


# Sets of latents that are given, so that nothing is denoised


def given(sets: Sequence[torch.Tensor], original: torch.Tensor, **options: Any) -> Scores:
    """Scores of operators op0, op1, ... whose latents are these."""
    store = LatentStore()
    store.put(ORIGINAL, 0, original)
    operators = [Operator(f"op{i:02}", "linear", ReplacementSpec(), None) for i in range(len(sets))]
    for operator, latents in zip(operators, sets, strict=True):
        store.put(operator.name, 0, latents)

    def denoise(rows: torch.Tensor, items: Sequence[int]) -> torch.Tensor:
        assert len(rows) <= 2, "only the checks are denoised"
        return rows

    noise = torch.randn(len(original), 3)
    params = settings(len(noise), **options)
    return score_operators(nn.Identity(), denoise, operators, {}, noise, params, store)


def test_rank_correlation_is_the_mean_over_pairs_of_sets() -> None:
    original = torch.randn(12, 6)
    sets = [original + 0.3 * i * torch.randn(12, 6) for i in range(1, 10)]
    values = pd.DataFrame(
        [[change_of(original[i::3], latents[i::3]).score("avg") for i in range(3)] for latents in sets]
    )
    pairs = values.corr("spearman").to_numpy()[np.triu_indices(3, 1)]
    scores = given(sets, original, num_seeds=3, formula="avg")
    assert scores.rank_correlation == pytest.approx(pairs.mean())
    np.testing.assert_allclose(scores.table["score"], scores.table["avg_dist"], rtol=1e-12)


@pytest.mark.parametrize(("num_sets", "num_operators"), [(1, 9), (2, 2)])
def test_no_rank_correlation_of_one_set_or_of_two_operators(num_sets: int, num_operators: int) -> None:
    original = torch.randn(8, 6)
    sets = [original + torch.randn(8, 6) for _ in range(num_operators)]
    assert given(sets, original, num_seeds=num_sets).rank_correlation is None


# What chance adds to a score, and how sure it is


def changed(kind: str, num_sets: int, num: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sets of latents (num_sets, num, size) and what an operator's absence makes of them."""
    original, noise = torch.randn(num_sets, num, size), torch.randn(num_sets, num, size)
    return original, {
        "others": noise,  # of the same distribution
        "scattered": original + 0.5 * noise,
        "shifted": original + 0.3 + 0.3 * noise,
        "drawn together": 0.7 * original + 0.3 * noise,
    }[kind]


KINDS = ("others", "scattered", "shifted", "drawn together")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [4, 16, 256])
@pytest.mark.parametrize("num", [8, 32, 128])
def test_interval_covers_the_expected_score(kind: str, size: int, num: int) -> None:
    """Of Gaussian changes at 95 to 99 % (of 150 sets that is +- 2 %), less than twice as wide as need be."""
    pairs = [change_of(*pair) for pair in zip(*changed(kind, 150, num, size), strict=True)]
    scores = np.array([pair.score("avg+std") for pair in pairs])
    low, high = np.array([pair.interval("avg+std") for pair in pairs]).T
    assert np.mean((low <= scores.mean()) & (scores.mean() <= high)) >= 0.91
    exact = scores.std() * stats.t.ppf(0.975, num - 1)
    assert 0.85 < np.mean(high - scores) / exact < 1.8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("formula", FORMULAS)
def test_debiased_score_is_that_of_many_latents(kind: str, formula: Formula) -> None:
    truth = change_of(*(each[0] for each in changed(kind, 1, 20_000, 64))).debiased(formula)
    few = [change_of(*pair) for pair in zip(*changed(kind, 60, 32, 64), strict=True)]
    plain, debiased = (
        np.mean([getattr(each, how)(formula) for each in few]) for how in ("score", "debiased")
    )
    scale = np.mean([each.score("avg") + each.score("std") for each in few])
    assert abs(debiased - truth) < 0.15 * scale
    assert debiased < plain
    if kind == "others":  # which are no change: a score of nothing but chance
        assert truth < 0.1 * plain
        assert debiased < 0.25 * plain


def test_noise_of_the_mean_is_the_covariance_of_the_differences() -> None:
    original, modified = torch.randn(16, 6), torch.randn(16, 6)
    change = change_of(original, modified)
    covariance = torch.cov((original - modified).double().T)
    assert change.noise[0].item() == pytest.approx(covariance.trace().item() / 16)
    row = given([modified], original).table.iloc[0]
    assert row[["avg_noise", "std_noise"]].tolist() == pytest.approx(change.noise.tolist())
    assert row["score_debiased"] == pytest.approx(change.debiased("avg+std"))


def test_replicates_are_debiased_scores_without_each_latent() -> None:
    original, modified = torch.randn(40, 6), 2 * torch.randn(40, 6) + 1
    found = change_of(original, modified).replicates("avg+std")
    rest = [torch.arange(40) != i for i in range(40)]
    expected = [change_of(original[keep], modified[keep]).debiased("avg+std") for keep in rest]
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_what_two_latents_or_an_infinite_score_say() -> None:
    two = change_of(torch.randn(2, 6), torch.randn(2, 6))
    assert two.score("avg+std") > 0
    assert np.isnan([*two.interval("avg+std"), two.debiased("std")]).all()
    broken = change_of(torch.randn(8, 6), torch.full((8, 6), math.nan))
    assert broken.interval("avg+std") == (math.inf, math.inf)
    assert broken.debiased("avg") == broken.replicates("avg").min() == math.inf
    same = torch.randn(8, 6)
    assert change_of(same, same).interval("avg+std") == (0, 0)


# Early stop


@cache
def spread() -> Ready:
    """Operators whose scores differ, with latents enough to tell."""
    return ready("light", 32)


@cache
def in_full() -> Scores:
    return spread().score(batch_size=64)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_early_stop_finds_the_lowest_share_and_says_what_was_stopped(share: float) -> None:
    denoiser, full = spread(), in_full()
    done, store = list[int](), LatentStore()
    scores = denoiser.score(batch_size=64, early_stop=share, report=done.append, store=store)
    wanted = math.ceil(share * len(denoiser.operators))
    columns = ["operator", "score", "score_low", "score_high"]
    pd.testing.assert_frame_equal(
        scores.table[~scores.table["stopped_early"]][columns].head(wanted).reset_index(drop=True),
        full.table[columns].head(wanted),
        rtol=1e-4,
    )
    stopped = scores.table[scores.table["stopped_early"]]
    assert len(stopped) > 0.2 * len(denoiser.operators)
    assert stopped["num_latents"].isin([4, 8, 16]).all()
    running = scores.table[~scores.table["stopped_early"]]
    assert (running["num_latents"] == 32).all()
    assert scores.num_rows == scores.table["num_latents"].sum() < full.num_rows
    assert done == sorted(done)
    assert done[-1] == 32 * len(denoiser.operators)
    row = stopped.iloc[0]  # its score is that of the latents that there are
    latents = store.get(row["operator"])
    assert len(latents) == row["num_latents"]
    assert row["score"] == change_of(store.get(ORIGINAL)[: len(latents)], latents).score("avg+std")


@pytest.mark.parametrize("num", [4, 8, 16])
def test_early_stop_is_not_misled_by_what_chance_adds(num: int) -> None:
    """Ten that scatter matter least in the end, but of few latents chance makes their scores the highest."""
    original, store = torch.randn(num, 256), LatentStore()
    shifted = [original + 0.19 for _ in range(10)]  # score 3 of any number of latents
    scattered = [original + 0.25 * torch.randn(num, 256) for _ in range(10)]  # 0.5 of many, 4 of 4
    operators = [Operator(f"op{i}", "linear", ReplacementSpec(), None) for i in range(20)]
    for operator, latents in zip(operators, [*shifted, *scattered], strict=True):
        store.put(operator.name, 0, latents)
    if num == 4:
        plain = [change_of(original, store.get(each.name)).score("avg+std") for each in operators]
        assert min(plain[10:]) > max(plain[:10])
    running = score_module._still_running(operators, 10, LatentSet(original), "avg+std", store)
    assert set(operators[10:]) <= set(running)
    assert num == 4 or len(running) == 10


@pytest.mark.parametrize("num_sets", [1, 2, 4])
def test_operators_are_compared_on_items_that_were_drawn(num_sets: int) -> None:
    order = score_module._order(64, settings(64, num_sets, early_stop=0.1))
    assert sorted(order.tolist()) == list(range(64))
    together = order.view(-1, num_sets)  # the same number of every set
    assert torch.equal(together % num_sets, torch.arange(num_sets).expand_as(together))
    assert torch.equal(together // num_sets, (together[:, :1] // num_sets).expand_as(together))
    assert order[:16].max() >= 32
    assert torch.equal(score_module._order(64, settings(64, num_sets)), torch.arange(64))


# Work that is taken up again


@pytest.mark.parametrize("early_stop", [None, 0.2])
@pytest.mark.parametrize("share", [0.1, 0.95])
@pytest.mark.parametrize("rows_per_batch", [12, 64])
def test_interrupted_scoring_goes_on_where_it_was(
    tmp_path: Path, early_stop: float | None, share: float, rows_per_batch: int
) -> None:
    denoiser = ready("light", 16)
    options: dict[str, Any] = {"batch_size": rows_per_batch, "early_stop": early_stop, "num_seeds": 2}
    reports: list[int] = []
    expected = denoiser.score(**options, report=reports.append)
    stop = reports[int(share * (len(reports) - 1))]

    def interrupt(done: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    first, second = Recorder(denoiser), Recorder(denoiser)
    with pytest.raises(KeyboardInterrupt):
        denoiser.score(first, **options, store=LatentStore(tmp_path), report=interrupt)
    assert is_clean(denoiser.case.network)
    resumed = denoiser.score(second, **options, store=LatentStore(tmp_path))
    pd.testing.assert_frame_equal(resumed.table, expected.table, check_exact=True)
    assert (resumed.num_rows, resumed.rank_correlation) == (expected.num_rows, expected.rank_correlation)
    check, original = 5, 16
    assert first.num_rows == check + original + stop
    assert second.num_rows == check + expected.num_rows - stop
    # And a third time nothing is left to do.
    third = Recorder(denoiser)
    denoiser.score(third, **options, store=LatentStore(tmp_path))
    assert third.num_rows == check


def test_file_that_is_cut_short_is_made_anew(tmp_path: Path) -> None:
    denoiser = ready("light", 8)
    expected = denoiser.score(store=LatentStore(tmp_path))
    for name in ("block_mid", ORIGINAL):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
    recorder = Recorder(denoiser)
    resumed = denoiser.score(recorder, store=LatentStore(tmp_path))
    # To the last digit, which another pass would change: it is scored with those that it was scored with.
    pd.testing.assert_frame_equal(resumed.table, expected.table, check_exact=True)
    assert 5 + 8 + 8 <= recorder.num_rows < 5 + 8 + expected.num_rows


@pytest.mark.parametrize("on_disk", [False, True])
def test_store_keeps_what_is_put_into_it(tmp_path: Path, on_disk: bool) -> None:
    folder = tmp_path / "store" if on_disk else None
    store = LatentStore(folder)
    latents = torch.randn(5, 2, 3)
    assert store.count("a.b") == 0
    store.put("a.b", 0, latents[:4])
    store.put("a.b", 2, latents[2:])
    store.put("a", 0, latents[:1])
    assert (store.count("a.b"), store.count("a"), store.count("b")) == (5, 1, 0)
    assert torch.equal(store.get("a.b"), latents)
    if folder is not None:
        again = LatentStore(folder)
        assert (again.count("a.b"), again.count("a")) == (5, 1)
        assert torch.equal(again.get("a.b"), latents)


# What would make scores of noise


class Chancy(nn.Module):
    """A network with one layer that is to be looked at."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.conv(x))


def chancy(layer: nn.Module, train: bool, change: Callable[[torch.Tensor], torch.Tensor]) -> Ready:
    network = awake(Chancy(layer))
    case = Case(network, lambda net, x, t, items: change(net(x)), (4, 4, 4))
    operators = case.find()
    network.train(train)
    return Ready(case, operators, fit_replacements(network, operators, lambda: None, "random"), case.noise(4))


@pytest.mark.parametrize(
    ("layer", "train", "change", "message"),
    [
        (nn.Dropout(0.2), True, lambda x: x, "other latents the next time"),
        (nn.SiLU(), False, lambda x: x + 0.01 * torch.randn_like(x), "other latents the next time"),
        (nn.BatchNorm2d(4), True, lambda x: x, "depends on the others of its batch"),
        (nn.SiLU(), False, lambda x: x + x.mean(0), "depends on the others of its batch"),
        (nn.SiLU(), False, lambda x: x / 0, "latents are not finite"),
    ],
    ids=["dropout", "global_noise", "batch_norm", "batch_mean", "infinite"],
)
def test_denoising_that_is_no_function_of_noise_and_item_is_refused(
    layer: nn.Module, train: bool, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    denoiser = chancy(layer, train, change)
    with pytest.raises(ModelError, match=message):
        denoiser.score()
    assert is_clean(denoiser.case.network)


@pytest.mark.parametrize("fail_at", [1, 4, 5, 7])
def test_nothing_is_left_in_the_network_where_scoring_fails(fail_at: int) -> None:
    denoiser = ready("plain")
    modules = {name: id(module) for name, module in denoiser.case.network.named_modules()}
    weights = {name: tensor.clone() for name, tensor in denoiser.case.network.state_dict().items()}
    recorder = Recorder(denoiser, fail_at)
    with pytest.raises(RuntimeError, match="broken off"):
        denoiser.score(recorder, batch_size=15)
    assert len(recorder.items) == fail_at
    assert is_clean(denoiser.case.network)
    assert {name: id(module) for name, module in denoiser.case.network.named_modules()} == modules
    assert all(torch.equal(weights[n], t) for n, t in denoiser.case.network.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.no_grad()
def test_scores_on_a_gpu_are_those_of_its_plain_loop() -> None:
    model = tiny_model().to("cuda")
    dense, denoiser = model.unet, model_denoiser(model, SamplerParams(kind="ddim", steps=4), 0)
    operators, noise = find_operators(dense, denoiser.forward(3)), denoiser.noise(6, 2, 0)
    replacements = fit_replacements(dense, operators, lambda: denoiser.denoise(noise, range(6)))
    with full_precision():
        params = settings(6, batch_size=len(operators) * 6)
        scores = score_operators(dense, denoiser.denoise, operators, replacements, noise, params)
        tolerance = 1e-5 * float(scores.original.std()) * scores.original[0].numel() ** 0.5
        table = scores.table.set_index("operator")
        for operator in operators:
            plan = Plan((PlanEntry(operator.name, operator.kind, operator.replacement),))
            model.unet = apply_plan(dense, plan, replacements)
            modified = denoiser.denoise(noise, range(6)).cpu()
            avg_dist, std_dist = change_of(scores.original, modified).parts.tolist()
            assert table.loc[operator.name, "avg_dist"] == pytest.approx(avg_dist, abs=tolerance)
            assert table.loc[operator.name, "std_dist"] == pytest.approx(std_dist, abs=tolerance)

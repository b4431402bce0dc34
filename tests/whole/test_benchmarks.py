"""Benchmarks: their rows, their counts, and that each runs. None of it depends on how fast anything is."""

import json
import math
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import counting
import demo
import harness
import memory
import pytest
import roofline
import sampling
import scoring
import table
import torch
import training
from tiny import ROOT, tiny_model, tiny_raw
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pelap.config.load import load_params
from pelap.core import files
from pelap.pipelines.pipeline_io import save_model
from pelap.surgery.apply import apply_plan
from pelap.surgery.plan import Plan, PlanEntry

CPU = torch.device("cpu")
KEYS = ["name", "ours", "reference", "ratio", "unit", "device", "versions"]
OF_EACH = {
    "training": [
        *("training", "training, bf16 of fp32", "training, share of the peak"),
        "ablation, five lambdas at once",
    ],
    "sampling": [*(f"sampling, {kind}" for kind in sampling.KINDS), "sampling, pruned against our dense"],
    "scoring": ["scoring", "scoring, early stop", "scoring, rows denoised with early stop"],
    "memory": [f"memory of {part}" for part in memory.PARTS],
}
"""Rows that every device has."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A dense model and a pruned one, as folders."""
    root, dense = tmp_path_factory.mktemp("models"), tiny_model()
    plan = Plan((PlanEntry("mid_block.attentions.0", "attention"),))
    pruned = dense.with_unet(apply_plan(dense.unet, plan), "pruned", 0.0)
    save_model(dense, root / "dense")
    save_model(pruned, root / "pruned", plan)
    return {name: str(root / name) for name in ("dense", "pruned")}


@pytest.fixture
def params(tmp_path: Path) -> str:
    path = tmp_path / "params.json"
    path.write_text(json.dumps(tiny_raw(evaluate__batch_size=8)))
    return str(path)


def rows_of(main: Callable[[list[str]], list[harness.Entry]], out: Path, *options: str) -> list[str]:
    """Run a benchmark; the names of its rows, which are what was written, all numbers finite and above 0."""
    words = [word for option in options for word in option.split(" ")]
    entries = main([*words, "--device", "cpu", "--out", str(out)])
    assert json.loads(out.read_text()) == [asdict(entry) for entry in entries]
    for entry in harness.check_entries([asdict(entry) for entry in entries], "rows"):
        assert entry.device == f"cpu, {torch.get_num_threads()} threads"
        assert "torch" in entry.versions
    return [entry.name for entry in entries]


@pytest.mark.parametrize(("unit", "ratio"), [("s", 2.0), ("MiB", 2.0), ("rows", 2.0), ("images/s", 0.5)])
def test_a_ratio_above_1_means_ours_is_better(unit: str, ratio: float) -> None:
    assert harness.compare("any", 1.0, 2.0, unit, CPU).ratio == ratio


def test_a_unit_without_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="any: unknown unit 'm'"):
        harness.compare("any", 1.0, 2.0, "m", CPU)


def broken_rows() -> dict[str, Any]:
    good = asdict(harness.compare("any", 1.0, 2.0, "s", CPU))
    return {
        "no list": good,
        "a key is missing": [{key: good[key] for key in KEYS[:-1]}],
        "a key too many": [good | {"more": 1}],
        "text for a number": [good | {"ratio": "2"}],
        "not finite": [good | {"ours": math.nan}],
        "nothing": [good | {"reference": 0.0}],
    }


@pytest.mark.parametrize("what", list(broken_rows()))
def test_rows_that_are_no_rows_are_refused(what: str) -> None:
    with pytest.raises(ValueError, match=r"file\.json"):
        harness.check_entries(broken_rows()[what], "file.json")


def test_rounds_are_interleaved_reversed_in_turn_and_the_first_do_not_count() -> None:
    calls: list[str] = []
    runs: dict[str, Callable[[], Any]] = {name: lambda name=name: calls.append(name) for name in "abc"}
    times, _ = harness.in_turns(runs, 2, CPU, "any", warmup=1)
    assert "".join(calls) == "abc" + "cba" + "abc"
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_a_convolution_is_counted_as_by_hand() -> None:
    conv, x = nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 16, 16)
    with torch.no_grad(), counting.Counter() as counter:
        conv(x)
    (kernel,) = counter.kernels
    assert kernel.kind == "convolution, forward"
    assert kernel.dtype == "float32"
    assert kernel.flops == 2 * (2 * 8 * 16 * 16) * (3 * 3 * 3)
    assert kernel.bytes == 4 * (2 * 3 * 16 * 16 + 8 * 3 * 3 * 3 + 8 + 2 * 8 * 16 * 16)


def test_operations_are_those_that_pytorch_counts_forward_and_backward() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.ConvTranspose2d(8, 4, 4, stride=2), nn.Flatten())
    x = torch.randn(2, 3, 8, 8)
    with FlopCounterMode(display=False) as wanted:
        model(x).square().sum().backward()
    with counting.Counter() as counter:
        model(x).square().sum().backward()
    assert sum(kernel.flops for kernel in counter.kernels) == wanted.get_total_flops() > 0
    kinds = {kernel.kind for kernel in counter.kernels if kernel.flops}
    assert kinds == {"convolution, forward", "convolution, backward"}


def moved(function: Callable[[], object]) -> int:
    with counting.Counter() as counter:
        function()
    return sum(kernel.bytes for kernel in counter.kernels)


def test_bytes_are_what_has_to_be_read_and_written() -> None:
    a, b, row = torch.ones(10, 10), torch.ones(10, 10), torch.ones(1, 10)
    assert moved(lambda: a.view(100)[5:].view(5, 19).t()) == 0  # views
    assert moved(lambda: a + b) == 3 * 400
    assert moved(lambda: a.add_(b)) == 3 * 400  # reads both, writes one
    assert moved(lambda: a.copy_(b)) == 2 * 400
    assert moved(lambda: a.fill_(1.0)) == 400
    assert moved(lambda: a + row.expand(10, 10)) == 2 * 400 + 40
    assert moved(lambda: a.to(torch.bfloat16)) == 400 + 200
    assert moved(lambda: torch.empty(10, 10)) == 0
    assert moved(lambda: torch._foreach_mul_([a, b], 2.0)) == 4 * 400


def test_a_kernel_takes_the_longer_of_computing_and_moving() -> None:
    rates = counting.Rates({"float32": 100.0, "bfloat16": 200.0, "convolution float32": 400.0}, 10.0)

    def least(kind: str, dtype: str, flops: int, num_bytes: int) -> float:
        return rates.least_seconds(counting.Kernel("any", kind, dtype, flops, num_bytes))

    assert least("matrix products", "float32", 1000, 20) == 10.0
    assert least("matrix products", "bfloat16", 1000, 20) == 5.0
    assert least("convolution, backward", "float32", 1000, 20) == 2.5
    assert least("matrix products", "float32", 1000, 200) == 20.0
    assert least("norm", "int64", 0, 30) == 3.0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::convolution_backward", "convolution, backward"),
        ("aten::mkldnn_convolution", "convolution, forward"),
        ("aten::addmm", "matrix products"),
        ("aten::native_group_norm_backward", "norm"),
        ("aten::normal_", "rest"),
        ("aten::silu_backward", "activation"),
        ("aten::_fused_adamw_", "optimiser"),
        ("aten::_to_copy", "copies and casts"),
        ("aten::add", "rest"),
    ],
)
def test_operators_have_classes(name: str, kind: str) -> None:
    assert counting.kind_of(name) == kind


@pytest.mark.slow
def test_training_runs(params: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "NUM_TEST", 8)
    monkeypatch.setattr(training, "LAMBDAS", (0.001, 0.1))
    sizes = "--side 16 --pictures 64 --steps 1 --rounds 1 --ablation-steps 1 --workers 0"
    assert rows_of(training.main, tmp_path / "rows.json", sizes, f"--params {params}") == OF_EACH["training"]


def test_the_reference_trains_from_our_weights_and_reads_every_loss(params: str) -> None:
    setting = training.Setting(training.load_params(Path(params), "train"), 64, 16, CPU)
    losses = next(training.reference_steps(setting, 0))
    assert {"loss", "recon", "kl", "noise"} <= set(losses)
    both = [setting.model().state_dict() for _ in range(2)]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])


def test_pictures_of_the_reference_are_in_the_range_of_ours() -> None:
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    seen, wanted = training.Pictures(images)[0], training.to_float(images)[0]
    same = torch.allclose(seen, wanted, atol=1e-6)
    assert same or torch.allclose(seen, wanted.flip(-1), atol=1e-6)


def test_sampling_runs(folders: dict[str, str], tmp_path: Path) -> None:
    models = f"--dense {folders['dense']} --pruned {folders['pruned']} --distilled {folders['pruned']}"
    rows = rows_of(sampling.main, tmp_path / "rows.json", models, "--steps 2 --images 2 --rounds 1")
    assert set(OF_EACH["sampling"]) <= set(rows)


@torch.no_grad()
def test_the_pipeline_that_sampling_is_compared_with_samples_as_we_do() -> None:
    model = tiny_model("baseline")
    sampler = sampling.SamplerParams(kind="ddim", steps=4)
    pipeline = sampling.reference_run(model, sampler, 2).func
    theirs = pipeline(batch_size=2, num_inference_steps=4, output_type="np", generator=torch.manual_seed(3))
    start = torch.randn(2, *model.latent_shape, generator=torch.manual_seed(3))
    ours = sampling.ModelGenerator(model, sampler).denoise(start, range(2), 0)
    seen = torch.as_tensor(theirs.images).permute(0, 3, 1, 2)
    assert torch.allclose(seen, (ours / 2 + 0.5).clamp(0, 1), atol=1e-4)


def test_scoring_runs(folders: dict[str, str], tmp_path: Path) -> None:
    sizes = "--latents 8 --steps 2 --rows 16 --rounds 1 --every 6"
    assert (
        rows_of(scoring.main, tmp_path / "rows.json", sizes, f"--model {folders['dense']}")
        == OF_EACH["scoring"]
    )


def test_frechet_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    import frechet

    real, made = (frechet.features_like_inceptions(8, seed) for seed in (0, 1))
    runs = frechet.feature_runs(made, real) | dict.fromkeys(frechet.NAMES[1:], lambda: 1.0)
    times, results = harness.in_turns(runs, 1, CPU, "distance")
    names = [entry.name for entry in frechet.rows("distance", times, CPU)]
    assert names == ["distance, torch-fidelity", "distance, torchmetrics"]
    assert results["ours"] > 0


@pytest.mark.slow
def test_memory_of_a_process_is_its_own(params: str, tmp_path: Path) -> None:
    """What this process holds does not count with what the measured one held."""
    held = torch.ones(2**28)  # 1 GiB, touched
    sizes = "--pictures 64 --side 16 --steps 1 --images 8 --reference 16 --parts imports training"
    rows = rows_of(memory.main, tmp_path / "rows.json", sizes, f"--params {params}")
    assert rows == ["memory of imports", "memory of training"]
    found = harness.check_entries(json.loads((tmp_path / "rows.json").read_text()), "rows")
    assert all(entry.reference == 4096 and entry.unit == "MiB" for entry in found)
    assert 50 < found[0].ours < memory.peak_resident_mib() - 1024 + 512
    assert held[-1] == 1


def test_memory_says_which_command_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"pelap train --params .*nowhere.yaml: .*nowhere.yaml"):
        memory.measure(tmp_path, "cpu", ["train", "--params", str(tmp_path / "nowhere.yaml")])


@pytest.mark.slow
def test_roofline_runs(
    params: str, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "product_rate", lambda *_, **__: 1e9)
    sizes = [
        "--side",
        "16",
        "--images",
        "2",
        "--rows",
        "16",
        "--every",
        "24",
        "--rounds",
        "1",
        "--device",
        "cpu",
    ]
    files = ["--out", str(tmp_path / "roofline.json"), "--tables", str(tmp_path / "roofline.md")]
    result = roofline.main(["--params", params, "--model", folders["dense"], *sizes, *files])
    assert json.loads((tmp_path / "roofline.json").read_text()) == result
    names = [work["name"].split(",")[0] for work in result["works"]]
    assert names == ["training step", "sampling step", "scoring pass", "feature pass"]
    for work in result["works"]:
        assert work["name"] in (tmp_path / "roofline.md").read_text()
        numbers = [work[key] for key in ("flops", "bytes", "predicted_s", "measured_s", "gap", "kernels")]
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert "convolution, forward" in work["by_class"]
        assert sum(kind["bytes"] for kind in work["by_class"].values()) == pytest.approx(work["bytes"])


def test_rows_of_several_files_make_one_table(tmp_path: Path) -> None:
    rows = [[harness.compare(name, 1.0, 2.0, "s", CPU) for name in names] for names in ("ab", "c")]
    files = [tmp_path / f"{place}.json" for place in range(2)]
    for file, entries in zip(files, rows, strict=True):
        file.write_text(json.dumps([asdict(entry) for entry in entries]))
    table.main([*map(str, files), "--out", str(tmp_path / "out")])
    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [row["name"] for row in written] == ["a", "b", "c"]
    assert "| c | 1 | 2 | s | 2.00 |" in (tmp_path / "out" / "table.md").read_text()


WORKS = """
import json, sys
rows = [dict(name="good", ours=1.0, reference=2.0, ratio=2.0, unit="s", device="cpu", versions={})]
open(sys.argv[sys.argv.index("--out") + 1], "w").write(json.dumps(rows))
"""


@pytest.mark.parametrize("fails", [True, False])
def test_one_benchmark_that_fails_costs_no_other_its_rows(tmp_path: Path, fails: bool) -> None:
    """`python benchmarks` with other scripts in the place of the benchmarks."""
    here = tmp_path / "benchmarks"
    here.mkdir()
    scripts = {
        name: (ROOT / "benchmarks" / f"{name}.py").read_text() for name in ("__main__", "harness", "table")
    }
    wanted = {"scoring": WORKS} | ({"training": "raise ValueError('no luck')"} if fails else {})
    for name, text in (scripts | wanted).items():
        (here / f"{name}.py").write_text(text)
    command = [sys.executable, str(here), "--only", *wanted, "--out", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == int(fails), done.stderr
    assert ("training: failed: ValueError: no luck" in done.stderr) == fails
    assert "scoring: done" in done.stderr
    assert [row["name"] for row in json.loads((tmp_path / "out" / "bench.json").read_text())] == ["good"]
    assert "| good |" in done.stdout


@pytest.mark.parametrize("fails", [True, False])
def test_a_check_of_a_gpu_keeps_what_was_done(tmp_path: Path, fails: bool) -> None:
    """`python benchmarks --gpu-check` with other scripts in the place of the benchmarks."""
    here = tmp_path / "benchmarks"
    here.mkdir()
    for name in ("__main__", "harness", "table"):
        shutil.copy(ROOT / "benchmarks" / f"{name}.py", here)
    (here / "scoring.py").write_text(WORKS)
    (here / "memory.py").write_text("raise ValueError('no luck')")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text(
        "import pytest\n@pytest.mark.gpu\ndef test_a(): pass\ndef test_b(): pass\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    out = tmp_path / "out"
    command = [sys.executable, str(here), "--gpu-check", "--out", str(out), "--only", "tests", "scoring"]
    done = subprocess.run(
        [*command, *["memory"] * fails],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == int(fails), done.stderr
    told = (out / "check.md").read_text()
    assert "1 passed, 1 deselected" in told
    assert ("no luck" in told) == fails
    assert "| good |" in told
    assert told in done.stdout
    with tarfile.open(tmp_path / "out.tar.xz") as archive:
        assert {"out/check.md", "out/bench.json", "out/parts/tests.log"} <= set(archive.getnames())


def test_a_part_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    runner = runpy.run_path(str(ROOT / "benchmarks" / "__main__.py"))
    starts = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    end = runner["run"](runner["Part"](["-c", starts], 1), tmp_path / "log")
    assert end.problem == "took more than 1 s"
    assert end.seconds < 20
    assert runner["SECONDS_FOR_CHECK"] <= 8 * 60


def test_the_committed_rows_are_whole() -> None:
    committed = json.loads((ROOT / "results" / "bench" / "bench.json").read_text())
    names = [entry.name for entry in harness.check_entries(committed, "bench.json")]
    for wanted in OF_EACH.values():
        assert set(wanted) <= set(names)
    assert len(set(names)) == len(names)
    assert any(name.startswith("distance of") for name in names)
    assert any(name.endswith("pictures to statistics, torchmetrics") for name in names)


def test_the_demo_guesses_by_how_fast_it_trains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """At half the speed of there it takes twice as long."""
    there = {
        "images_per_s": 400.0,
        "stages": {"download": {"seconds": 10.0}, "train pelap": {"seconds": 80.0}},
    }
    files.write_json(tmp_path / "demo.json", there)
    monkeypatch.setattr(demo, "KEPT", tmp_path / "demo.json")
    monkeypatch.setattr(demo, "images_per_s", lambda params: 200.0)
    demo.main([])
    assert "take about 3 min here" in capsys.readouterr().out


def test_the_demo_was_measured_whole() -> None:
    kept = files.read_json(demo.KEPT)
    assert list(kept["stages"]) == list(demo.stages(load_params(ROOT / "params.yaml")))
    assert all(row["seconds"] > 0 and row["gflop"] >= 0 for row in kept["stages"].values())


@pytest.mark.slow
def test_stages_of_the_demo_are_timed_and_their_operations_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(ROOT / "params.yaml")
    monkeypatch.setattr(demo, "stages", lambda params: {"download": ["download"]})
    monkeypatch.setattr(demo, "images_per_s", lambda params: 100.0)
    measured = demo.measure(params, ["seed=3"])
    assert measured["images_per_s"] == 100
    assert measured["stages"]["download"]["seconds"] > 0
    assert demo.count(params, ["seed=3"]) == {"download": 0}

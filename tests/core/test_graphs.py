"""Recorded functions do what they do when they are called."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from recording import record_on_cpu
from tiny import tiny_dataset, tiny_model, tiny_params
from training_cases import train_jointly

from pelap.config import VariantParams
from pelap.core.graphs import WARMUP_CALLS, Graphed

CPU = torch.device("cpu")
GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
)


class Counter:
    """Adds what it is given to a total, and notes that Python ran."""

    def __init__(self, device: str = "cpu") -> None:
        self.total = torch.zeros(2, device=device)
        self.num_runs = 0

    def __call__(self, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        self.num_runs += 1
        self.total += given["x"]
        return self.total * 2, given["x"] + 1


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_every_call_has_its_effect_once(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cpu":
        record_on_cpu(monkeypatch)
    counter = Counter(device)
    graphed = Graphed(counter, torch.device(device))
    for call in range(1, 8):
        doubled, next_ = graphed({"x": torch.full((2,), float(call))})
        assert doubled.tolist() == [call * (call + 1.0)] * 2
        assert next_.tolist() == [call + 1.0] * 2
        assert counter.total.tolist() == [call * (call + 1) / 2] * 2
    assert counter.num_runs == WARMUP_CALLS + 1


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_another_shape_runs_as_it_is(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cpu":
        record_on_cpu(monkeypatch)
    graphed = Graphed(lambda given: given * 2, torch.device(device))
    for size in (3, 3, 3, 3, 3, 2, 3, 2):
        assert graphed(torch.arange(float(size))).tolist() == [2.0 * i for i in range(size)]


def test_nothing_is_recorded_on_a_cpu_or_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Counter()
    graphed = Graphed(plain, CPU)
    for _ in range(6):
        graphed({"x": torch.ones(2)})
    assert plain.num_runs == 6
    recorder = record_on_cpu(monkeypatch)
    switched_off = Graphed(plain, CPU, record=False)
    for _ in range(6):
        switched_off({"x": torch.ones(2)})
    assert (plain.num_runs, recorder.num_recorded) == (12, 0)


# --- training ---------------------------------------------------------------------------------------

MASKED = {"normalise": "before_mask", "decoder_input": "masked"}
PHASES = {"vae_training": "two_stage", "start_epoch": 1, "warmup_epochs": 1, "schedule": "linear"}
HARD = {
    "gate": "hard_concrete",
    "adaptive": False,
    "mask_lr": 0.03,
    "encoder_losses": ["reconstruction"],
    "mask_losses": ["reconstruction", "sparsity"],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"sparsity_key": "lambda"},
    "no mask": {"sparsity_key": "seed", "gate": "none"},
    "phases": {"sparsity_key": "lambda"} | MASKED | PHASES,
    "hard": {"sparsity_key": "lambda"} | MASKED | HARD,
}
OPTIONS: dict[str, Any] = {
    "train__epochs": 3,
    "train__vae_epochs": 2,
    "train__batch_size": 8,
    "train__ema_decay": 0.9,
    "train__select": "best",
    "train__num_validation": 12,
    "lambda": 0.1,
}


def _trained(folder: Path, variant: str, execution: str, device: torch.device = CPU) -> tuple[Any, Any, Any]:
    options = OPTIONS | {"train__execution": execution}
    model = tiny_model(fields=VariantParams(**VARIANTS[variant]), **options)
    params = tiny_params(**options).train
    kept, progress = train_jointly(model, tiny_dataset(), params, device, folder / execution)
    return kept.state_dict(), progress.history, progress.validation


def _assert_same(found: list[dict[str, float]], expected: list[dict[str, float]], rel: float = 1e-4) -> None:
    assert len(found) == len(expected) > 2
    for a, b in zip(found, expected, strict=True):
        a["images_per_s"] = b["images_per_s"] = 0.0
        assert a == pytest.approx(b, rel=rel, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_recorded_training_is_the_plain_one(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = record_on_cpu(monkeypatch)
    plain = _trained(tmp_path, variant, "eager")
    assert recorder.num_recorded == 0
    recorded = _trained(tmp_path, variant, "auto")
    assert recorder.num_recorded >= 1
    for key, tensor in plain[0].items():
        torch.testing.assert_close(recorded[0][key], tensor, rtol=0, atol=0, msg=key)
    _assert_same(recorded[1], plain[1])
    _assert_same(recorded[2], plain[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("execution", ["auto", "compiled"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_on_a_gpu_is_the_plain_one(variant: str, execution: str, tmp_path: Path) -> None:
    cuda = torch.device("cuda")
    plain = _trained(tmp_path, variant, "eager", cuda)
    with warnings.catch_warnings():
        # What PyTorch's own modules tell each other while they translate: deprecated parts, TF32 not used.
        warnings.filterwarnings("ignore", module=r"torch\.")
        recorded = _trained(tmp_path, variant, execution, cuda)
    # Convolutions in TF32 round to 10 bits, each way to compute in its own way: rounding all of them so on a
    # CPU moved the losses of these runs by 0.1 %.
    for found, expected in zip(recorded[1:], plain[1:], strict=True):
        _assert_same(found, expected, rel=0.02)

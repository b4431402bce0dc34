"""A run of several variants that is interrupted: those that were done are not done again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import SAVE_EVERY
from tiny import tiny_dataset, tiny_params

from pelap.core import files
from pelap.core.errors import TrainingError
from pelap.core.paths import RunPaths, packed_dataset
from pelap.data.dataset import save_dataset
from pelap.stages import train
from pelap.stages.shared import Context
from pelap.training.trainer import Trainer

CPU = torch.device("cpu")


def weights(run: RunPaths) -> dict[str, bytes]:
    models = run.root / "train"
    return {str(it.relative_to(models)): it.read_bytes() for it in models.rglob("*.safetensors")}


@pytest.mark.parametrize("end", [KeyboardInterrupt(), TrainingError("the loss is not finite")])
def test_finished_variants_are_kept(
    end: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_dataset(tiny_dataset(), packed_dataset(tmp_path, "photos"))
    params = tiny_params()
    first, second, *_ = params.variants

    def context(name: str) -> Context:
        return Context(params, RunPaths(tmp_path / name), tmp_path, CPU)

    train.run(context("whole"))
    whole, cut = RunPaths(tmp_path / "whole"), RunPaths(tmp_path / "cut")
    step, taken = Trainer._step, list[tuple[str, int]]()
    interrupted = True
    monkeypatch.setattr(SAVE_EVERY, 1e9)

    def note(self: Trainer, *args: Any) -> Any:
        taken.append((self.label.removeprefix("train "), self.progress.step))
        if interrupted and taken[-1] == (second, 1):
            raise end
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", note)
    with pytest.raises(type(end)):
        train.run(context("cut"))
    done = {name for name, _ in taken} - {second}
    assert first in done
    assert {path.parent.name for path in cut.root.glob("train/*/model")} == done
    assert "kept" not in capsys.readouterr().out
    taken.clear()
    interrupted = False
    train.run(context("cut"))
    assert {name for name, _ in taken} == {*params.variants} - done
    said = capsys.readouterr().out
    for name in params.variants:
        assert (f"train {name}: was finished" in said) == (name in done)
    assert weights(cut) == weights(whole)
    assert not (cut.root / ".resume").exists()
    history = [files.read_csv(run.train(first).history, ["loss"])["loss"] for run in (whole, cut)]
    assert history[0].tolist() == history[1].tolist()
    taken.clear()
    train.run(context("cut"))  # a new run is a new run
    assert {name for name, _ in taken} == {*params.variants}

"""Training that is cut off at a step, and a record of the steps that are taken afterwards."""

from typing import Any

import pytest

from pelap.training.trainer import Trainer

SAVE_EVERY = "pelap.training.trainer.CHECKPOINT_SECONDS"


def cut_training(patch: pytest.MonkeyPatch, cut_at: int) -> None:
    """Interrupt any training before step `cut_at`, just after the state was saved."""
    step = Trainer._step

    def cut(self: Trainer, *args: Any) -> Any:
        if self.progress.step == cut_at:
            raise KeyboardInterrupt
        patch.setattr(SAVE_EVERY, -1.0 if self.progress.step == cut_at - 1 else 1e9)
        return step(self, *args)

    patch.setattr(Trainer, "_step", cut)


def record_steps(patch: pytest.MonkeyPatch) -> list[int]:
    """The steps that trainings take from now on."""
    step, taken = Trainer._step, []

    def note(self: Trainer, *args: Any) -> Any:
        taken.append(self.progress.step)
        return step(self, *args)

    patch.setattr(SAVE_EVERY, 1e9)
    patch.setattr(Trainer, "_step", note)
    return taken

"""What students are given: the same in every run, whatever is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distillation import (
    ALL,
    CPU,
    MASKED,
    TOPK,
    batches_for,
    count_calls,
    distill_params,
    same,
    shaken,
    state_of,
    weights,
)
from tiny import set_logits, tiny_dataset, tiny_model

from pelap.config import VariantParams
from pelap.data.dataset import ImageDataset, Split
from pelap.distillation.batches import Batches, ModelBatches, NoisyBatch, SharedBatches
from pelap.distillation.distill import Distilled, distill

OUTPUT = weights(task=1.0, output=2.0)


def assert_equal(one: NoisyBatch, other: NoisyBatch) -> None:
    for name in ("latents", "timesteps", "target"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_latents_are_masked() -> None:
    teacher = tiny_model(fields=MASKED)
    set_logits(teacher, -30.0)  # all channels closed: what is left is the noise
    batches = batches_for(teacher, distill_params())
    for batch in (next(batches(0)), next(iter(batches.held_out()))):
        share = batches.alphas[batch.timesteps][:, None, None, None]
        torch.testing.assert_close(batch.latents, (1 - share).sqrt() * batch.target)


def test_batches_do_not_depend_on_the_number_of_students(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, params = tiny_model(), distill_params()
    made = []
    real = teacher.vae.encode

    def encode(images: torch.Tensor) -> Any:
        made.append(len(images))
        return real(images)

    monkeypatch.setattr(teacher.vae, "encode", encode)
    one = batches_for(teacher, params)
    assert sum(made) == 8  # those held out
    many = batches_for(teacher, params, num_students=3)  # 288 draws from 128
    assert sum(made) == 8 + 8 + 128
    for step in (0, 5, 40):
        a, b = next(one(step)), next(many(step))
        torch.testing.assert_close(a.latents, b.latents)
        assert torch.equal(a.target, b.target)


def test_held_out_pictures_are_the_first_test_pictures_with_noise_of_their_own() -> None:
    teacher, dataset = tiny_model(), tiny_dataset()

    def held_out(dataset: ImageDataset, **overrides: Any) -> list[torch.Tensor]:
        batches = ModelBatches(teacher, dataset, distill_params(**overrides), 0, CPU)
        noise = torch.cat([next(batches(0)).target, *(batch.target for batch in batches.held_out())])
        assert len(noise.unique(dim=0)) == len(noise)
        calls = [[b.latents for b in batches.held_out()] for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*calls, strict=True))
        return calls[0]

    expected = torch.cat(held_out(dataset))
    assert len(expected) == 8
    small = held_out(dataset, batch_size=3)
    assert [len(each) for each in small] == [3, 3, 2]
    torch.testing.assert_close(torch.cat(small), expected)
    images = dataset.test.images.clone()
    images[8:] = 0
    other_rest = replace(dataset, train=tiny_dataset(70).train, test=Split(images, dataset.test.labels))
    assert torch.equal(torch.cat(held_out(other_rest)), expected)
    images[0] = 0
    changed = torch.cat(held_out(other_rest))
    assert not torch.equal(changed[0], expected[0])
    assert torch.equal(changed[1:], expected[1:])


# --- shared by students -----------------------------------------------------------------------------

# Latents, target and the teacher's prediction are 16 of 4 x 4 x 4 floats; 16 time steps, and ones for the
# 16 x 4 channels that are there.
BYTES = 3 * 16 * 64 * 4 + 16 * 8 + 16 * 4 * 4


@pytest.mark.parametrize(("limit", "num_kept"), [(0, 0), (3 * BYTES - 1, 2), (2**20, 6)])
def test_shared_batches_are_those_of_the_steps_whatever_is_kept(limit: int, num_kept: int) -> None:
    plain = batches_for(tiny_model(), distill_params(), num_students=3)
    stream = plain(0)
    expected = [next(stream) for _ in range(6)]
    for first in range(6):
        assert_equal(next(plain(first)), expected[first])
        shared = SharedBatches(plain, limit)
        # A student that goes on where it was interrupted comes first; the next has all steps.
        for step in (first, 0):
            for wanted, batch in zip(expected[step:], shared(step), strict=False):
                assert_equal(batch, wanted)
        again = [[next(shared(step)) for step in range(6)] for _ in range(2)]
        assert sum(one is other for one, other in zip(*again, strict=True)) == num_kept
    held_out = [shared.held_out() for _ in range(2)]
    assert all(one is other for one, other in zip(*held_out, strict=True))
    for one, other in zip(held_out[0], plain.held_out(), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize(("fields", "precision"), [(MASKED, "fp32"), (TOPK, "bf16")], ids=["fp32", "bf16"])
def test_students_that_share_batches_learn_what_they_would_alone(
    tmp_path: Path, fields: VariantParams, precision: str
) -> None:
    params = distill_params(precision=precision, log_every=1)
    ends: dict[str, list[Distilled]] = {"alone": [], "shared": []}
    for name, found in ends.items():
        teacher = tiny_model(fields=fields)
        shaken(teacher.unet)
        plain = batches_for(teacher, params, num_students=3)
        shared = SharedBatches(plain)
        for index, how in enumerate([weights(task=1.0), OUTPUT, ALL, OUTPUT]):
            batches: Batches = shared if name == "shared" else plain
            student, folder = tiny_model(seed=index, fields=fields).unet, tmp_path / name / str(index)
            found.append(distill(student, teacher.unet, batches, params, how, CPU, folder))
    for alone, together in zip(*ends.values(), strict=True):
        assert same(state_of(alone.network), state_of(together.network))
        assert alone.progress.validation == together.progress.validation
        rows = [[row | {"images_per_s": 0} for row in each.progress.history] for each in (alone, together)]
        assert rows[0] == rows[1]


def test_the_teacher_is_asked_once_for_students_that_need_its_prediction_alone(tmp_path: Path) -> None:
    teacher, params = tiny_model(), distill_params()
    shared, calls = SharedBatches(batches_for(teacher, params, num_students=3)), count_calls(teacher.unet)
    asked = []
    for index, how in enumerate([weights(task=1.0), OUTPUT, OUTPUT, weights(output=1.0), ALL]):
        student = tiny_model(seed=index).unet
        distill(student, teacher.unet, shared, params, how, CPU, tmp_path / str(index))
        asked.append(len(calls))
        calls.clear()
    # 6 steps and 1 batch held out; features are not kept: asked about what is held out at 3 validations, for
    # the losses and for the shares of their terms.
    assert asked == [0, 6 + 1, 0, 0, 6 + 3 * 2]

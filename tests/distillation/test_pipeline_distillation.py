"""A pipeline in memory is distilled as one in a folder is."""

import copy

import pytest
import torch
from pipeline_pairs import KINDS, REMOVED, dataset_for, denoiser, distillation_params, student_of

from pelap.distillation.pipeline_distillation import distill_pipeline
from pelap.surgery.apply import apply_plan, plan_kept
from pelap.surgery.plan import plan_from_json


@pytest.mark.parametrize("kind", ["ddim", "stable_diffusion"])
def test_a_pipeline_in_memory_learns_and_leaves_its_teacher_alone(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = KINDS[kind]()
    weights = copy.deepcopy(denoiser(teacher).state_dict())
    student = copy.copy(teacher)
    plan = plan_from_json({"operators": REMOVED["unet"]}, "test")
    student.unet = apply_plan(teacher.unet, plan)
    start = copy.deepcopy(student.unet.state_dict())
    params = distillation_params(distill__students=student_of(output_weight=1.0)).distill
    how = params.students["one"]
    trained = distill_pipeline(student, teacher, dataset_for(kind), params, how, show_progress=False)
    assert trained.pipe is student
    assert plan_kept(student.unet) == plan
    validation = trained.progress.validation
    assert validation[-1]["output"] < 0.9 * validation[0]["output"]
    assert any(not torch.equal(start[name], t) for name, t in student.unet.state_dict().items())
    assert all(torch.equal(weights[name], t) for name, t in denoiser(teacher).state_dict().items())
    assert trained.state is None
    assert capsys.readouterr() == ("", "")

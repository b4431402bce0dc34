"""Precision of a block of computation, and the memory of freed tensors."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from pelap.core.device import (
    DETERMINISTIC_VARIABLE,
    NORMS_CRASH,
    ask_gradients_of_norms,
    autocast,
    choose_device,
    normalise_in_fp32,
)
from pelap.core.errors import ConfigError

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 3))


def test_group_norms_stay_out_of_bf16() -> None:
    model, inputs = network(), torch.randn(2, 4, 8, 8)
    seen: list[torch.dtype] = []
    model[1].register_forward_hook(lambda module, args, out: seen.append(args[0].dtype))
    for _ in range(3):  # the second time does nothing
        with autocast(CPU, "bf16"):
            model(inputs)
        normalise_in_fp32(model)
    assert seen == [torch.bfloat16, torch.float32, torch.float32]
    assert len(model[1]._forward_pre_hooks) == 1


@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_norms_of_other_precisions_stay_what_they_are(kind: torch.dtype) -> None:
    model, inputs = network().to(kind), torch.randn(2, 4, 8, 8, dtype=kind)
    before = model(inputs)
    normalise_in_fp32(model)
    assert torch.equal(model(inputs), before)


@pytest.mark.skipif(NORMS_CRASH, reason="this version of PyTorch crashes where they are not asked")
def test_norms_asked_for_gradients_give_the_same_ones() -> None:
    plain, asked = network(), network()
    ask_gradients_of_norms(asked)
    ask_gradients_of_norms(asked)
    seen: list[bool] = []
    asked[1].register_forward_hook(lambda module, args, out: seen.append(args[0].requires_grad))
    inputs = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    for model in (plain, asked):
        model[1:](inputs).square().sum().backward()
    for one, other in zip(plain[1:].parameters(), asked[1:].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)  # a backward pass of more may add in another order
    with torch.no_grad():
        asked[1:](inputs)
    assert seen == [True, False]
    assert len(asked[1]._forward_pre_hooks) == 1


FAULTS = """
import resource, torch
from pelap.core.device import keep_freed_memory
kept = {switch} and keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    activations = [torch.ones(2**24) for _ in range(4)]  # 64 MiB each
for _ in range(5):  # until the heap has found its layout
    step()
before = faults()
for _ in range(4):
    step()
print(kept, faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has the switch")
def test_memory_of_freed_tensors_is_used_again() -> None:
    def run(switch: bool) -> tuple[str, int]:
        command = [sys.executable, "-c", FAULTS.format(switch=switch)]
        kept, faults = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return kept, int(faults)

    kept, faults = run(True)
    if kept == "False":
        pytest.skip("no mallopt here")
    assert 10 * faults < run(False)[1]


def test_the_environment_asks_for_the_same_bits_at_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    for asked, given in (("", False), ("0", False), ("1", True)):
        monkeypatch.setenv(DETERMINISTIC_VARIABLE, asked)
        try:
            choose_device("cpu")
            assert torch.are_deterministic_algorithms_enabled() == given
        finally:
            torch.use_deterministic_algorithms(False)
    monkeypatch.setenv(DETERMINISTIC_VARIABLE, "yes")
    with pytest.raises(ConfigError, match="PELAP_DETERMINISTIC=yes: set it to 1"):
        choose_device("cpu")

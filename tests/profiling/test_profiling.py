"""Latency and cost: what is called when, and counts checked by hand."""

import gc
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor, nn

from pelap.core.errors import ModelError
from pelap.profiling import latency as latency_module
from pelap.profiling.cost import count_macs, count_params, peak_memory_mib
from pelap.profiling.latency import Latency, compiled, measure_latency, measure_module_latencies, watch_calls

CPU = torch.device("cpu")
MIB = 2**20


class Blocks(nn.Module):
    """Layers in a list, one of them called twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.act = nn.SiLU()
        self.unused = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        return self.layers[0](x)


def hooks_of(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


# --- latency ----------------------------------------------------------------------------------------


def test_functions_are_interleaved_in_shuffled_order_the_same_in_every_run() -> None:
    calls: list[str] = []
    functions = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    for _ in range(2):
        assert list(measure_latency(functions, CPU, repeats=28, warmup=2)) == ["a", "b", "c"]
    assert calls[:90] == calls[90:]
    rounds = [tuple(calls[i : i + 3]) for i in range(0, 90, 3)]
    assert set(rounds) == set(itertools.permutations("abc"))


def fake_clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock that only moves when told, in ns."""
    now = [0]
    monkeypatch.setattr(latency_module.time, "perf_counter_ns", lambda: now[0])
    return now


def test_latency_is_the_median_and_the_distance_of_the_quartiles(monkeypatch: pytest.MonkeyPatch) -> None:
    now, times_ms, collected = fake_clock(monkeypatch), iter([100, 100, 5, 1, 2, 4, 3]), []

    def function() -> None:
        collected.append(gc.isenabled())
        now[0] += next(times_ms) * 10**6

    result = measure_latency({"f": function}, CPU, repeats=5, warmup=2)
    assert result == {"f": Latency(median_ms=3.0, iqr_ms=2.0, least_ms=1.0, repeats=5)}
    assert not any(collected)  # no garbage is collected while timing
    assert gc.isenabled()


def test_device_is_waited_for_before_each_reading_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(latency_module, "synchronise", lambda _: events.append("wait"))
    monkeypatch.setattr(latency_module.time, "perf_counter_ns", lambda: events.append("clock") or 0)
    measure_latency({"f": lambda: events.append("call")}, CPU, repeats=1, warmup=0)
    assert events == ["wait", "clock", "call", "wait", "clock"]


def translate_with(monkeypatch: pytest.MonkeyPatch, backend: Callable[..., Any]) -> None:
    """Let `torch.compile` end at a function of graphs, where its own takes a minute."""
    own = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **options: own(call, backend=backend, **options))


def test_compiled_networks_are_translated_once_for_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[int] = []

    def backend(graph: nn.Module, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(1)
        return graph.forward

    translate_with(monkeypatch, backend)
    # More than PyTorch would translate of the same lines of code.
    networks = {str(width): nn.Sequential(nn.Linear(8, width)) for width in range(1, 13)}
    with torch.no_grad(), compiled(networks) as translated:
        for rows in (3, 2, 4, 3):
            for name, network in networks.items():
                x = torch.randn(rows, 8)
                assert torch.equal(translated[name](x), network(x))
                assert translated[name][0].weight is network[0].weight
    assert len(graphs) == 3 * len(networks)
    assert all(network._compiled_call_impl is None for network in networks.values())


def test_no_compiled_network_runs_untranslated(monkeypatch: pytest.MonkeyPatch) -> None:
    translate_with(monkeypatch, lambda graph, inputs: graph.forward)
    monkeypatch.setattr(latency_module, "_RECOMPILE_LIMIT", 2)
    networks = {str(width): nn.Linear(8, width) for width in range(1, 5)}
    with compiled(networks) as translated, pytest.raises(Exception, match="recompile"):
        for network in translated.values():
            network(torch.zeros(2, 8))


def test_module_latencies_sum_calls_nest_and_are_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slow = fake_clock(monkeypatch), iter([100, 7, 1, 2])
    network = Blocks()
    costs_ms = {network.layers[0]: 3, network.layers[1]: 5, network.act: 1}
    for module, cost in costs_ms.items():
        module.register_forward_hook(lambda *_, cost=cost: now.__setitem__(0, now[0] + cost * 10**6))
    network.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + next(slow) * 10**6))
    names, x = ["layers.0", "layers.1", "act", "unused"], torch.randn(2, 8)
    result = measure_module_latencies(network, lambda: network(x), names, CPU, repeats=3, warmup=1)
    assert result == {"": 15.0, "layers.0": 6.0, "layers.1": 5.0, "act": 2.0, "unused": 0.0}
    assert hooks_of(network) == 1 + len(costs_ms)


def test_hooks_are_removed_whatever_happens() -> None:
    network, x, seen = Blocks(), torch.randn(2, 8), list[str]()

    def fail() -> None:
        network(x)
        raise KeyError("interrupted")

    with pytest.raises(KeyError):
        measure_module_latencies(network, fail, ["act"], CPU, repeats=1)
    with pytest.raises(KeyError):
        count_macs(network, fail)
    with pytest.raises(AttributeError), watch_calls({"a": network, "b": None}, print, print):  # type: ignore[dict-item]
        pass
    assert hooks_of(network) == 0
    assert gc.isenabled()
    with watch_calls({"act": network.act}, lambda name: seen.append(name), lambda name: seen.append(name)):
        inside = network(x)
    assert torch.equal(inside, network(x))  # hooks change nothing
    assert seen == ["act"] * 4


def test_unknown_module_is_named() -> None:
    with pytest.raises(ModelError, match=r"Blocks: has no submodule 'layers.9'"):
        measure_module_latencies(Blocks(), lambda: None, ["layers.9"], CPU, repeats=1)


# --- parameters and multiply-accumulates -------------------------------------------------------------


def test_params_count_shared_ones_once_and_no_buffers() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    network.append(network[0]).requires_grad_(False)
    assert count_params(network) == 3 * 5 + 5 + 2 * 5


def test_macs_by_hand() -> None:
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2)
    network = nn.Sequential(conv, nn.SiLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
    outside = torch.zeros(10, 4)  # counts for the whole alone
    macs = count_macs(network, lambda: network(torch.zeros(2, 6, 8, 8)) @ outside)
    by_hand = {"0": 2 * 8 * 4 * 4 * 3 * 9, "1": 0, "2": 0, "3": 2 * 128 * 10}
    assert macs == by_hand | {"": sum(by_hand.values()) + 2 * 10 * 4}


def test_macs_of_modules_in_lists_and_of_several_calls() -> None:
    network, layer = Blocks(), 5 * 8 * 8
    macs = count_macs(network, lambda: network(torch.zeros(5, 8)))
    inner = {"layers": 0, "layers.0": 2 * layer, "layers.1": layer, "act": 0, "unused": 0}
    assert macs == {"": 3 * layer} | inner


def test_macs_of_attention() -> None:
    from diffusers.models.attention_processor import Attention

    batch, tokens, width, heads = 2, 16, 32, 4
    projection = batch * tokens * width * width
    products = 2 * batch * heads * tokens * tokens * (width // heads)
    network, x = Attention(query_dim=width, heads=heads, dim_head=width // heads), torch.zeros(2, 16, 32)
    macs = count_macs(network, lambda: network(x))
    assert macs[""] == 4 * projection + products
    assert macs["to_q"] == macs["to_out.0"] == projection
    own = nn.MultiheadAttention(width, heads, batch_first=True).eval()
    assert count_macs(own, lambda: own(x, x, x))[""] == 4 * projection + products
    assert torch.backends.mha.get_fastpath_enabled()
    # Versions differ in the fused kernels that the counter knows.
    seen: list[bool] = []
    count_macs(nn.Identity(), lambda: seen.append(torch.backends.cuda.flash_sdp_enabled()))
    assert seen == [False]
    assert torch.backends.cuda.flash_sdp_enabled()


def test_macs_of_a_unet_add_up() -> None:
    network = tiny_model().unet
    macs = count_macs(network, lambda: network(torch.zeros(2, 4, 8, 8), 1))
    assert set(macs) == set(dict(network.named_modules()))
    blocks = [name for name in macs if name.count(".") == 1 and "blocks" in name]
    around = ["conv_in", "time_embedding", "mid_block", "conv_out"]
    assert macs[""] == sum(macs[name] for name in (*blocks, *around))
    assert macs["down_blocks.0.resnets.0.conv1"] == 2 * 8 * 8 * 9 * 8 * 8


# --- memory -----------------------------------------------------------------------------------------


def peak_bytes(network: nn.Module, x: Tensor) -> float:
    return peak_memory_mib(network, lambda: network(x), CPU) * MIB


def test_memory_of_linear_layers_by_hand() -> None:
    network = nn.Sequential(nn.Linear(100, 400), nn.ReLU(), nn.Linear(400, 50), nn.ReLU(inplace=True))
    weights = 4 * (100 * 400 + 400 + 400 * 50 + 50)
    for batch in (1, 16):
        # Two hidden layers of 400 are alive while the first ReLU runs; the input was there before.
        assert peak_bytes(network, torch.zeros(batch, 100)) == weights + 4 * batch * 800
    deep = nn.Sequential(*[nn.Linear(64, 64) for _ in range(6)])  # nothing is kept for gradients
    assert peak_bytes(deep, torch.zeros(256, 64)) == 6 * 4 * (64 * 64 + 64) + 2 * 4 * 256 * 64


def test_memory_counts_views_once_and_buffers() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6, 4))
            self.register_buffer("steps", torch.zeros(10, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            return (y.view(-1).view(x.shape).T.T[:2], self.weight.T, x.mul_(2))[0]

    assert peak_bytes(Views(), torch.zeros(32, 32)) == 4 * 24 + 80 + 4 * 32 * 32


def test_memory_is_given_back_when_a_tensor_is_freed() -> None:
    chain, x = nn.Sequential(*[nn.SiLU() for _ in range(20)]), torch.zeros(1000)
    assert peak_bytes(chain, x) == 2 * 4 * 1000
    assert peak_memory_mib(chain, lambda: [x + i for i in range(20)], CPU) * MIB == 20 * 4 * 1000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_memory_and_time_are_sound() -> None:
    device = torch.device("cuda")
    network = nn.Sequential(nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 16)).to(device)
    x = torch.zeros(512, 1024, device=device)
    weights_mib = 4 * count_params(network) / MIB
    hidden_mib = 4 * 512 * 4096 / MIB
    held = torch.zeros(64 * MIB, device=device)  # somebody else's memory does not count
    peak = peak_memory_mib(network, lambda: network(x), device)
    assert weights_mib + 2 * hidden_mib <= peak < weights_mib + 3 * hidden_mib
    del held
    times = measure_module_latencies(network, lambda: network(x), ["0", "2"], device, repeats=3)
    assert 0 < times["0"] + times["2"] <= times[""] * 1.01

"""Time: of functions against each other, and of the modules inside a network."""

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from pelap.core.device import synchronise
from pelap.core.errors import ModelError
from pelap.core.garbage import no_garbage_collection
from pelap.core.rng import generator

Key = TypeVar("Key", bound=Hashable)

_RECOMPILE_LIMIT = 1024  # PyTorch's own limit of 8 is below the number of networks in a table


@dataclass(frozen=True)
class Latency:
    """Time of one call."""

    median_ms: float
    iqr_ms: float  # distance between the quartiles
    least_ms: float  # when nothing else wants the machine: the steadiest figure on one that is shared
    repeats: int


def measure_latency(
    functions: Mapping[Key, Callable[[], object]], device: torch.device, repeats: int, warmup: int = 3
) -> dict[Key, Latency]:
    """Time functions against each other.

    Every round calls each function once, in an order shuffled anew (the same in every run), so that a
    machine that slows down, heats up or is shared slows all of them alike.

    Args:
        functions: What to call, by name; they set their own gradient and precision modes.
        device: Where they compute; it is waited for before each reading of the clock.
        repeats: Rounds that count, at least 1.
        warmup: Rounds before, which do not.
    """
    names, times_ms = list(functions), defaultdict[Key, list[float]](list)
    with no_garbage_collection():  # a collection would count as time of whoever is running
        for round_ in range(warmup + repeats):
            order = torch.randperm(len(names), generator=generator(0, "latency order", round_)).tolist()
            for name in (names[i] for i in order):
                elapsed_ms = _time_ms(functions[name], device)
                if round_ >= warmup:
                    times_ms[name].append(elapsed_ms)
    return {name: _summary(times_ms[name]) for name in names}


@contextmanager
def compiled(networks: Mapping[str, nn.Module]) -> Iterator[dict[str, nn.Module]]:
    """The same networks with the same weights, translated by `torch.compile` at their first call.

    Every shape of input has code of its own, and a network for which there is none raises instead of
    running untranslated. All translations are forgotten after the block.
    """
    import torch._dynamo

    copies = {name: copy.copy(network) for name, network in networks.items()}
    for each in copies.values():
        each.compile(dynamic=False)
    limits = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), _RECOMPILE_LIMIT)
    try:
        with torch._dynamo.config.patch(limits | {"fail_on_recompile_limit_hit": True}):
            yield copies
    finally:
        torch._dynamo.reset()


def measure_module_latencies(
    module: nn.Module,
    forward: Callable[[], object],
    names: Collection[str],
    device: torch.device,
    repeats: int,
    warmup: int = 3,
) -> dict[str, float]:
    """Time spent inside submodules during one call of `forward`.

    A module called several times in a pass has the sum; one that is not called has 0. Modules inside a
    measured module count in both. On CUDA the times are between events in the stream, and so include
    what the device waits for the host.

    Args:
        module: The network.
        forward: Calls the network; it sets its own gradient and precision modes.
        names: Submodules, as `named_modules` calls them.
        device: Where the network is.
        repeats: Calls that count, at least 1.
        warmup: Calls before, which do not.

    Returns:
        Median milliseconds by name; ``""`` is the whole module and is always there.

    Raises:
        ModelError: No module has one of the names.
    """
    modules = {name: _submodule(module, name) for name in ("", *names)}
    times_ms: dict[str, list[float]] = {name: [] for name in modules}
    with no_garbage_collection():
        for round_ in range(warmup + repeats):
            stopwatch = _Stopwatch(device)
            with watch_calls(modules, stopwatch.start, stopwatch.stop):
                forward()
            if round_ >= warmup:
                totals = stopwatch.totals_ms()
                for name, times in times_ms.items():
                    times.append(totals.get(name, 0.0))
    return {name: median(times) for name, times in times_ms.items()}


@contextmanager
def watch_calls(
    modules: Mapping[str, nn.Module], enter: Callable[[str], None], leave: Callable[[str], None]
) -> Iterator[None]:
    """Call `enter` and `leave` with the name of each of `modules` around every forward pass of it.

    The hooks are gone after the block, however it ends.
    """
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(partial(_notify, enter, name)).remove)
            stack.callback(module.register_forward_hook(partial(_notify, leave, name)).remove)
        yield


def _notify(callback: Callable[[str], None], name: str, *_: object) -> None:
    callback(name)  # returns None, or the hook would replace what the module gets or gives


class _Stopwatch:
    """Spans of time by name, nested or repeated."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started: defaultdict[str, list[_Mark]] = defaultdict(list)
        self._spans: list[tuple[str, _Mark, _Mark]] = []

    def start(self, name: str) -> None:
        self._started[name].append(_Mark(self._device))

    def stop(self, name: str) -> None:
        self._spans.append((name, self._started[name].pop(), _Mark(self._device)))

    def totals_ms(self) -> dict[str, float]:
        synchronise(self._device)
        totals: defaultdict[str, float] = defaultdict(float)
        for name, start, end in self._spans:
            totals[name] += start.ms_until(end)
        return totals


class _Mark:
    """A moment: an event in the stream on CUDA, which stalls nothing, the clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))
        else:
            synchronise(device)
        self._clock_ns = time.perf_counter_ns()

    def ms_until(self, end: "_Mark") -> float:
        if self._event is not None and end._event is not None:
            return float(self._event.elapsed_time(end._event))
        return (end._clock_ns - self._clock_ns) / 1e6


def _time_ms(function: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    start_ns = time.perf_counter_ns()
    result = function()
    synchronise(device)
    elapsed_ns = time.perf_counter_ns() - start_ns
    del result  # freed after the clock was read, in the same way for every function
    return elapsed_ns / 1e6


def _summary(times_ms: list[float]) -> Latency:
    low, middle, high = np.percentile(times_ms, [25, 50, 75]).tolist()
    return Latency(median_ms=middle, iqr_ms=high - low, least_ms=min(times_ms), repeats=len(times_ms))


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise ModelError(
            f"{type(module).__name__}: has no submodule {name!r}; use a name of its named_modules()"
        ) from None

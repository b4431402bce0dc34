"""Trainings side by side, and what steps are given made ahead of them."""

import os
import signal
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch
from tiny import tiny_dataset, tiny_params

from pelap.core.errors import TrainingError
from pelap.core.files import read_csv
from pelap.core.paths import RunPaths, packed_dataset
from pelap.data.dataset import save_dataset
from pelap.pipelines.pipeline_io import load_model
from pelap.stages import train
from pelap.stages.shared import Context
from pelap.training.parallel import _prefetched, prefetch, train_parallel

CPU = torch.device("cpu")


def counting(
    name: str, num_steps: int, log: list[str], error_at: int | None = None
) -> Generator[None, None, str]:
    log.append(f"{name} starts")
    yield
    for step in range(num_steps):
        if step == error_at:
            raise TrainingError(f"{name} failed")
        log.append(f"{name}{step}")
        yield
    return name


@pytest.mark.parametrize("parallel_variants", [1, 2, 5])
def test_results_are_in_order_whatever_is_done_at_once(parallel_variants: int) -> None:
    log: list[str] = []
    trainings = [counting(name, num, log) for name, num in (("a", 30), ("b", 1), ("c", 7))]
    assert train_parallel(trainings, CPU, parallel_variants) == ["a", "b", "c"]
    assert len(log) == 3 + 30 + 1 + 7
    for name in "abc":
        assert next(entry for entry in log if entry.startswith(name)) == f"{name} starts"


@pytest.fixture(autouse=True)
def _four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_no_more_than_asked_for_run_at_once_each_with_its_share_of_the_threads() -> None:
    before = torch.get_num_threads()
    lock, running, most, threads, two = threading.Lock(), set(), [0], set(), threading.Event()

    def watched(name: int) -> Generator[None, None, None]:
        yield
        for _ in range(20):
            with lock:
                running.add(name)
                most[0] = max(most[0], len(running))
                if len(running) == 2:
                    two.set()
                threads.add(torch.get_num_threads())
            two.wait(timeout=30)
            yield
        with lock:
            running.remove(name)

    train_parallel([watched(name) for name in range(5)], CPU, 2)
    assert most[0] == 2
    assert threads == {max(1, before // 2)}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("parallel_variants", [1, 2, 3])
def test_the_others_go_on_when_one_fails(parallel_variants: int) -> None:
    log: list[str] = []
    lengths = (("a", 20, None), ("bad", 5, 3), ("worse", 5, 2), ("c", 9, None))
    trainings = [counting(name, num, log, error_at) for name, num, error_at in lengths]
    with pytest.raises(TrainingError, match="bad failed") as raised:
        train_parallel(trainings, CPU, parallel_variants)
    assert {"a19", "bad2", "worse1", "c8"} <= set(log)
    frames = traceback.extract_tb(raised.value.__traceback__)
    assert "counting" not in {frame.name for frame in frames}  # whose models would stay in memory
    assert "in counting" in raised.value.__notes__[0]


def test_an_interruption_stops_all_and_starts_no_more() -> None:
    log: list[str] = []
    running = threading.Event()

    def endless(name: str) -> Generator[None, None, None]:
        log.append(name)
        while True:
            yield
            if len(log) == 2:
                running.set()

    def interrupt() -> None:
        assert running.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    trainings = [endless(name) for name in "abcdef"]
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        train_parallel(trainings, CPU, 2)
    assert log == ["a", "b"]
    with pytest.raises(StopIteration):  # closed, so that files are let go
        next(trainings[0])


@pytest.mark.slow
def test_variants_trained_together_are_those_trained_alone(tmp_path: Path) -> None:
    dataset = tiny_dataset()
    save_dataset(dataset, packed_dataset(tmp_path, "photos"))

    def run(parallel_variants: int) -> RunPaths:
        params = tiny_params(train__parallel_variants=parallel_variants, train__log_every=1)
        paths = RunPaths(tmp_path / str(parallel_variants))
        train.run(Context(params, paths, tmp_path, CPU))
        return paths

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that sums are added up alike
    try:
        alone, together = run(1), run(3)
    finally:
        torch.set_num_threads(threads)
    for name in tiny_params().variants:
        first, second = (load_model(paths.train(name).model, CPU) for paths in (alone, together))
        for key, tensor in first.state_dict().items():
            assert torch.equal(second.state_dict()[key], tensor), (name, key)
        histories = [read_csv(paths.train(name).history, ["loss"])["loss"] for paths in (alone, together)]
        assert histories[0].tolist() == histories[1].tolist()
    assert not (together.root / ".resume").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_trainings_take_turns_on_a_gpu() -> None:
    log: list[str] = []
    cuda = torch.device("cuda")
    trainings = [counting(name, num, log) for name, num in (("a", 3), ("b", 1), ("c", 2))]
    assert train_parallel(trainings, cuda, 2) == ["a", "b", "c"]
    assert log == ["a starts", "b starts", "a0", "b0", "a1", "a2", "c starts", "c0", "c1"]


# --- ahead ------------------------------------------------------------------------------------------


def test_items_made_ahead_are_the_same_in_order_and_so_is_an_error() -> None:
    items = [(torch.tensor(i), {"x": torch.tensor([i, i])}) for i in range(30)]
    assert [int(item[0]) for item in _prefetched(iter(items), pin=False)] == list(range(30))
    plain = iter(items)
    assert prefetch(plain, CPU) is plain

    def breaks_off() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("third")

    made = _prefetched(breaks_off(), pin=False)
    assert [next(made), next(made)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(made)


def test_nothing_is_made_any_more_once_nobody_wants_it() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    stream = _prefetched(items(), pin=False)
    assert next(stream) == 0
    stream.close()
    num = len(made)
    assert num < 20
    time.sleep(0.05)
    assert len(made) == num

"""Several trainings side by side in one process."""

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from itertools import islice
from threading import Event, Lock
from typing import TypeAlias, TypeVar

import torch

Result = TypeVar("Result")

Training: TypeAlias = Generator[None, None, Result]
"""A training that yields before its first step and after every one, and returns its result.

What comes before the first step may use torch's global random numbers; no other part may.
"""


def train_alone(training: Training[Result]) -> Result:
    """Take all steps of a training."""
    while True:
        try:
            next(training)
        except StopIteration as end:
            result: Result = end.value
            return result


def train_together(trainings: Sequence[Training[Result]], device: torch.device, at_once: int) -> list[Result]:
    """Take the steps of several trainings, up to `at_once` of them side by side.

    Each gives what it gives alone, but for the rounding of a CPU that adds up with another number of threads.
    On a CUDA device they take turns, each in a stream of its own, so that the kernels of one fill what those
    of another leave idle; elsewhere each has a thread, and its share of the CPU's.

    Args:
        trainings: In the order in which they start.
        device: Where they compute.
        at_once: At least 1.

    Returns:
        Their results, in the same order.

    Raises:
        Exception: The first that one of them raises; the others stop after the step that they are at.
    """
    if at_once == 1 or len(trainings) == 1:
        return [train_alone(training) for training in trainings]
    if device.type == "cuda":
        return _in_turns(trainings, device, at_once)
    return _in_threads(trainings, at_once)


def _in_turns(trainings: Sequence[Training[Result]], device: torch.device, at_once: int) -> list[Result]:
    results: dict[int, Result] = {}
    waiting = iter(enumerate(trainings))
    running = {index: (training, torch.cuda.Stream(device)) for index, training in islice(waiting, at_once)}
    while running:
        for index, (training, stream) in list(running.items()):
            try:
                with torch.cuda.stream(stream):
                    next(training)
            except StopIteration as end:
                results[index] = end.value
                del running[index]
                running |= {following: (each, stream) for following, each in islice(waiting, 1)}
    return [results[index] for index in range(len(trainings))]


def _in_threads(trainings: Sequence[Training[Result]], at_once: int) -> list[Result]:
    num_threads = torch.get_num_threads()
    share = max(1, num_threads // min(at_once, len(trainings)))
    stop, starting = Event(), Lock()

    def run(training: Training[Result]) -> Result:
        with starting:
            next(training)
        while not stop.is_set():
            try:
                next(training)
            except StopIteration as end:
                result: Result = end.value
                return result
        training.close()
        raise _StoppedError

    torch.set_num_threads(share)
    try:
        with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            futures = [pool.submit(run, training) for training in trainings]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # also where this thread is interrupted
                stop.set()
        return _results(futures)
    finally:
        torch.set_num_threads(num_threads)


class _StoppedError(Exception):
    """A training stopped because another one failed."""


def _results(futures: Iterable["Future[Result]"]) -> list[Result]:
    futures = list(futures)
    for future in futures:
        error = future.exception()
        if error is not None and not isinstance(error, _StoppedError):
            raise error
    return [future.result() for future in futures]

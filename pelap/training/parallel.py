"""Several trainings side by side in one process."""

import gc
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Event, Lock
from traceback import format_tb
from typing import Generic, TypeAlias, TypeVar, cast

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


def train_parallel(
    trainings: Sequence[Training[Result]], device: torch.device, parallel_variants: int
) -> list[Result]:
    """Take the steps of several trainings, up to `parallel_variants` of them side by side.

    Each gives what it gives alone, but for the rounding of a CPU that adds up with another number of threads.
    On a CUDA device they take turns, each in a stream of its own, so that the kernels of one fill what those
    of another leave idle; elsewhere each has a thread, and its share of the CPU's, of which there are enough
    for one each at least.

    Args:
        trainings: In the order in which they start.
        device: Where they compute.
        parallel_variants: At least 1.

    Returns:
        Their results, in the same order.

    Raises:
        Exception: The first that one of them raised; the others are trained to their ends all the same.
        KeyboardInterrupt: All stop after the step that they are at.
    """
    if len(trainings) == 1:
        return [train_alone(trainings[0])]
    outcomes = [_Outcome(training) for training in trainings]
    if device.type == "cuda":
        _in_turns(outcomes, device, parallel_variants)
    else:
        _in_threads(outcomes, min(parallel_variants, torch.get_num_threads()))
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return [cast(Result, outcome.result) for outcome in outcomes]


class _Outcome(Generic[Result]):
    """How a training goes, step by step; what is known at its end."""

    def __init__(self, training: Training[Result]) -> None:
        self.training = training
        self.result: Result | None = None
        self.error: Exception | None = None

    def step(self) -> bool:
        """Take one step; False if there is none any more."""
        try:
            next(self.training)
        except StopIteration as end:
            self.result = end.value
            return False
        except Exception as error:
            # Where it was in words: frames hold the model and its memory for as long as the error is kept.
            error.add_note("".join(format_tb(error.__traceback__)))
            self.error = error.with_traceback(None)
            return False
        return True


def _in_turns(outcomes: Sequence[_Outcome[Result]], device: torch.device, at_once: int) -> None:
    # What they share was made in the stream of now.
    torch.cuda.current_stream(device).synchronize()
    waiting = iter(outcomes)
    running = [(each, torch.cuda.Stream(device)) for each in islice(waiting, at_once)]
    try:
        while running:
            going_on = []
            for each, stream in running:
                with torch.cuda.stream(stream):
                    goes_on = each.step()
                if goes_on:
                    going_on.append((each, stream))
                    continue
                gc.collect()  # what was recorded for it lies in cycles; its memory is the next one's
                going_on += [(following, stream) for following in islice(waiting, 1)]
            running = going_on
    finally:
        for each, _ in running:
            each.training.close()


def _in_threads(outcomes: Sequence[_Outcome[Result]], at_once: int) -> None:
    num_threads = torch.get_num_threads()
    share = num_threads // min(at_once, len(outcomes))
    stop, starting = Event(), Lock()

    def run(outcome: _Outcome[Result]) -> None:
        with starting:
            goes_on = not stop.is_set() and outcome.step()
        while goes_on and not stop.is_set():
            goes_on = outcome.step()
        if stop.is_set():
            outcome.training.close()

    torch.set_num_threads(share)
    try:
        with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            try:
                for future in [pool.submit(run, outcome) for outcome in outcomes]:
                    future.result()
            finally:  # where this thread is interrupted; otherwise all is done
                stop.set()
    finally:
        torch.set_num_threads(num_threads)

"""What goes on side by side in one process: several trainings, and the making of what steps are given."""

import gc
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from threading import Event, Lock
from traceback import format_tb
from typing import TypeAlias, TypeVar

import torch
from torch.utils._pytree import tree_map

Item = TypeVar("Item")
Result = TypeVar("Result")

PREFETCHED = 8  # items that are made ahead
AWAKE = 0.5  # seconds after which a waiting thread looks for signals

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
    ends: list[Future[Result]] = [Future() for _ in trainings]
    works = list(zip(trainings, ends, strict=True))
    if device.type == "cuda":
        _in_turns(works, device, parallel_variants)
    else:
        _in_threads(works, min(parallel_variants, torch.get_num_threads()))
    return [end.result() for end in ends]


Work: TypeAlias = tuple[Training[Result], "Future[Result]"]  # a training, and how it ended


def _step(training: Training[Result], end: "Future[Result]") -> bool:
    """Take one step of a training; False if there is none any more."""
    try:
        next(training)
    except StopIteration as stop:
        end.set_result(stop.value)
    except Exception as error:
        # Where it was in words: frames hold the model and its memory for as long as the error is kept.
        error.add_note("".join(format_tb(error.__traceback__)))
        end.set_exception(error.with_traceback(None))
    return not end.done()


def _in_turns(works: Sequence[Work[Result]], device: torch.device, num_parallel: int) -> None:
    # What they share was made in the stream of now.
    torch.cuda.current_stream(device).synchronize()
    waiting = iter(works)
    running = [(each, torch.cuda.Stream(device)) for each in islice(waiting, num_parallel)]
    try:
        while running:
            going_on = []
            for each, stream in running:
                with torch.cuda.stream(stream):
                    goes_on = _step(*each)
                if goes_on:
                    going_on.append((each, stream))
                    continue
                gc.collect()  # what was recorded for it lies in cycles; its memory is the next one's
                going_on += [(following, stream) for following in islice(waiting, 1)]
            running = going_on
    finally:
        for each, _ in running:
            each[0].close()


def _in_threads(works: Sequence[Work[Result]], num_parallel: int) -> None:
    num_threads = torch.get_num_threads()
    share = num_threads // min(num_parallel, len(works))
    stop, starting = Event(), Lock()

    def run(training: Training[Result], end: "Future[Result]") -> None:
        with starting:
            goes_on = not stop.is_set() and _step(training, end)
        while goes_on and not stop.is_set():
            goes_on = _step(training, end)
        if stop.is_set():
            training.close()

    torch.set_num_threads(share)
    try:
        with ThreadPoolExecutor(num_parallel, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            try:
                waiting = {pool.submit(run, *work) for work in works}
                while waiting:  # a signal that comes while a wait begins is seen when it ends
                    done, waiting = wait(waiting, timeout=AWAKE)
                    for future in done:
                        future.result()
            finally:  # where this thread is interrupted; otherwise all is done
                stop.set()
    finally:
        torch.set_num_threads(num_threads)


def prefetch(items: Iterator[Item], device: torch.device) -> Iterator[Item]:
    """The same items; for a CUDA device a thread makes them ahead, in memory that the device copies from.

    Args:
        items: Trees of CPU tensors; making them must not use the device.
        device: Where they will be used.
    """
    return _prefetched(items) if device.type == "cuda" else items


def _prefetched(items: Iterator[Item], pin: bool = True) -> Iterator[Item]:
    def make() -> list[Item]:
        """The next item, or none behind the last one."""
        return [_pinned(item) if pin else item for item in islice(items, 1)]

    with ThreadPoolExecutor(1) as pool:
        prefetched = deque(pool.submit(make) for _ in range(PREFETCHED))
        try:
            while made := prefetched.popleft().result():
                prefetched.append(pool.submit(make))
                yield made[0]
        finally:  # nobody wants more
            pool.shutdown(cancel_futures=True)


def _pinned(item: Item) -> Item:
    pinned: Item = tree_map(lambda leaf: leaf.pin_memory() if isinstance(leaf, torch.Tensor) else leaf, item)
    return pinned

"""Measure several engines in turns, so that what else the machine does falls on all of them alike."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np

from autoreg.runtime.engine import Engine, Images, Labels

ROUNDS = 9
"""How often each is measured."""

_LEAST_ROUNDS = 3
_MOST_CALLS = 10_000


class Runner:
    """Calls an engine in all of its lanes at once. Use it as a context manager."""

    def __init__(self, engine: Engine, images: Images, batch_size: int) -> None:
        """Take an engine to measure.

        Args:
            engine: that has been loaded.
            images: the tiles that it is shown, at least ``batch_size``.
            batch_size: tiles per call.
        """
        self.engine = engine
        self.batch_size = batch_size
        self._starts = [min(start, len(images) - batch_size) for start in range(0, len(images), batch_size)]
        self._images = images
        self._pool = ThreadPoolExecutor(engine.lanes, thread_name_prefix="autoreg-bench")
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed = True  # calls that have begun are waited for, no others
        self._pool.shutdown(cancel_futures=True)

    def label(self) -> Labels:
        """Labels of all images (N, H, W), in clusters; each lane is used, if there are tiles for it."""
        labels = np.empty((len(self._images), *self._images.shape[2:]), np.uint8)
        for start, found in zip(self._starts, self._pool.map(self._call, range(len(self._starts))), strict=True):
            labels[start : start + self.batch_size] = found
        return labels

    def seconds_per_tile(self, calls: int) -> float:
        """Seconds of ``calls`` in each lane, per tile."""
        lanes = self.engine.lanes
        start = time.perf_counter()
        for _ in self._pool.map(self._call_often, range(lanes), [calls] * lanes):
            pass
        return (time.perf_counter() - start) / (lanes * calls * self.batch_size)

    def _call(self, number: int) -> Labels:
        start = self._starts[number % len(self._starts)]
        return self.engine.label(self._images[start : start + self.batch_size])

    def _call_often(self, lane: int, calls: int) -> None:
        for call in range(calls):
            if self._closed:
                return
            self._call(lane + call * self.engine.lanes)


def measure_in_turns(runners: Sequence[Runner], seconds: float, end_round: Callable[[int], None]) -> list[list[float]]:
    """Seconds per tile of each, in each round.

    Args:
        runners: that have labelled before, as first calls are slow.
        seconds: for all together; at least 3 rounds of one call in each lane are made, whatever they take.
        end_round: called after each round with the rounds that have been made, of ``ROUNDS``.
    """
    turn_seconds = seconds / (ROUNDS * len(runners))
    calls = []
    for runner in runners:
        call_seconds = runner.seconds_per_tile(1) * runner.batch_size * runner.engine.lanes
        calls.append(min(max(int(turn_seconds / call_seconds), 1), _MOST_CALLS))
    taken: list[list[float]] = [[] for _ in runners]
    start = time.perf_counter()
    for done in range(1, ROUNDS + 1):
        for runner, count, times in zip(runners, calls, taken, strict=True):
            times.append(runner.seconds_per_tile(count))
        end_round(done)
        if done >= _LEAST_ROUNDS and time.perf_counter() - start > seconds:
            break
    return taken

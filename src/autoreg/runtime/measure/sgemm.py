"""How fast numpy multiplies matrices here: what a network that is all convolutions can be held against."""

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from autoreg.raster.background import count_cores

_SIDE = 1024
"""Three matrices of 4 MB: they fit into the caches of most machines, and into the memory of all."""
_SECONDS = 0.1
_UNDISTURBED = 0.8
"""Least share of the processor time that threads of their own would get."""


@dataclass(frozen=True)
class Sgemm:
    """How fast numpy multiplies float32 matrices.

    Attributes:
        gflop_per_s: thousand million operations per second; a multiply-add counts as two.
        side: rows and columns of each matrix.
        library: the BLAS that numpy calls, and its version.
        threads: of the BLAS, or of all the products that were made at once.
        busy_threads: processor time per time meanwhile, less than ``threads`` where others want the cores.
    """

    gflop_per_s: float
    side: int
    library: str
    threads: int
    busy_threads: float

    @property
    def disturbed(self) -> bool:
        """Whether other processes had much of the cores meanwhile, or the machine does not give all that it shows."""
        return self.busy_threads < _UNDISTURBED * self.threads

    def __str__(self) -> str:
        threads = f"{self.threads} {'thread' if self.threads == 1 else 'threads'}, {self.busy_threads:.1f} busy"
        return f"{self.gflop_per_s:.1f} GFLOP/s (numpy, {self.side} x {self.side}, {self.library}, {threads})"


class SgemmMeter:
    """Measures what numpy's BLAS reaches with all cores, a few products at a time.

    A BLAS that has been told to use fewer threads than there are cores runs as many products at once as keep all busy.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._left, self._right = (rng.random((_SIDE, _SIDE), np.float32) for _ in range(2))
        self._blas_threads = _count_blas_threads()
        self._at_once = max(count_cores() // self._blas_threads, 1)
        self._seconds: list[float] = []
        self._busy_seconds, self._all_seconds = 0.0, 0.0
        np.matmul(self._left, self._right)  # the first call is slow

    def measure(self) -> None:
        """Measure for about a tenth of a second."""
        busy, start = time.process_time(), time.perf_counter()
        with ThreadPoolExecutor(self._at_once) as pool:
            for seconds in pool.map(self._multiply, [start + _SECONDS] * self._at_once):
                self._seconds += seconds
        self._busy_seconds += time.process_time() - busy
        self._all_seconds += time.perf_counter() - start

    def _multiply(self, end: float) -> list[float]:
        """Seconds of each product until ``end``, one at least."""
        product, times = np.empty_like(self._left), [time.perf_counter()]
        while len(times) < 2 or times[-1] < end:
            np.matmul(self._left, self._right, out=product)
            times.append(time.perf_counter())
        return [later - earlier for earlier, later in pairwise(times)]

    def result(self) -> Sgemm:
        """By the median of all products."""
        rate = self._at_once * 2 * _SIDE**3 / 1e9 / statistics.median(self._seconds)
        threads = self._at_once * self._blas_threads
        return Sgemm(rate, _SIDE, _blas(), threads, self._busy_seconds / self._all_seconds)


def _blas() -> str:
    configuration: Any = np.show_config(mode="dicts")
    blas = configuration.get("Build Dependencies", {}).get("blas", {})
    return " ".join(str(blas[name]) for name in ("name", "version") if blas.get(name)) or "unknown BLAS"


def _count_blas_threads() -> int:
    """Threads of one product: as many as the environment says, or as there are cores."""
    named = [os.environ.get(name, "") for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")]
    allowed = [int(number) for number in named if number.isdecimal() and int(number) > 0]
    return min([*allowed[:1], count_cores()])

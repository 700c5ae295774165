"""How busy the GPUs are, and how much of their memory is taken, as their driver counts it."""

import ctypes
import statistics
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from autoreg.runtime.devices import find_uuids

_SAMPLE_SECONDS = 0.05


class _Utilization(ctypes.Structure):
    """``nvmlUtilization_t``: percent of the last sample period, up to a second, in which something was computed; copied."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    """``nvmlMemory_t``, in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class GpuMeter:
    """Watches the GPUs of this process during a ``with`` block; other processes' work on them counts, too.

    Attributes:
        busy: share of the time, 0..1, in which a GPU computed, over all of them; None where the driver cannot tell.
        grown_bytes: by how much the memory in use grew at the peak, summed over the GPUs; None likewise.
    """

    busy: float | None = None
    grown_bytes: int | None = None

    def __enter__(self) -> Self:
        self._devices: list[ctypes.c_void_p] = []
        with suppress(OSError, AttributeError):  # no driver, or one that lacks a function
            self._library = ctypes.CDLL("libnvidia-ml.so.1")
            self._devices = self._find()
        self._shares: list[float] = []
        self._peak = self._before = self._used()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="autoreg-gpu-meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()
        if self._devices and self._shares:
            self.busy = statistics.fmean(self._shares)
            self.grown_bytes = max(self._peak - self._before, 0)
        if self._devices:
            self._library.nvmlShutdown()

    def _find(self) -> list[ctypes.c_void_p]:
        """Those that CUDA shows to this process."""
        if self._library.nvmlInit_v2():
            return []
        found = []
        for uuid in find_uuids():
            device = ctypes.c_void_p()
            if self._library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(device)):
                return []
            found.append(device)
        return found

    def _watch(self) -> None:
        while self._devices and not self._stopped.wait(_SAMPLE_SECONDS):
            rates = _Utilization()
            for device in self._devices:
                if self._library.nvmlDeviceGetUtilizationRates(device, ctypes.byref(rates)) == 0:
                    self._shares.append(rates.gpu / 100)
            self._peak = max(self._peak, self._used())

    def _used(self) -> int:
        memory, used = _Memory(), 0
        for device in self._devices:
            if self._library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == 0:
                used += memory.used
        return used

"""How much memory a piece of work takes at its peak, by what Linux tells a process of itself."""

import resource
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""What resets the peak to the present, see proc_pid_clear_refs(5)."""


class Growth:
    """By how much the resident memory of this process grows at the peak of a ``with`` block.

    Memory that the process has freed but kept is used again, and does not count.

    Attributes:
        bytes: known after the block; None on a system that cannot tell.
    """

    bytes: int | None = None

    def __enter__(self) -> Self:
        try:
            _RESET.write_text(_RESET_PEAK, encoding="ascii")
            self._before = _resident_bytes("VmRSS")
        except OSError:
            self._before = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        peak = None if self._before is None else _resident_bytes("VmHWM")
        if self._before is not None and peak is not None:
            self.bytes = max(peak - self._before, 0)


def peak_bytes() -> int:
    """Most resident memory of this process so far."""
    with suppress(OSError):
        # What getrusage says begins with the peak of the process that started this one.
        if (peak := _resident_bytes("VmHWM")) is not None:
            return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _resident_bytes(name: str) -> int | None:
    """``VmRSS``, the resident memory of this process, or ``VmHWM``, its peak."""
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return None

"""A stand-in for the functions of ``cuda.bindings.driver`` over the computer's memory; types and codes are the real ones.

What a stream is given is done when somebody waits for it, and no sooner: whoever reads an answer without waiting, or changes
what has not been copied yet, gets it wrong each time, and not once in a while. It is stricter than CUDA in two things that
ours are to keep to: the computer's memory has to be pinned, and no memory is freed while work that uses it is not done.
"""

import ctypes
import gc
import importlib
import threading
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import pytest

driver: Any = importlib.import_module("cuda.bindings.driver")
Code = driver.CUresult
Work = Callable[[], None]

_STANDS_FOR: dict[str, Callable[..., Any]] = {}
_NEEDS_NO_CONTEXT = (
    "cuInit",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease",
    "cuCtxPushCurrent",
    "cuCtxPopCurrent",
    "cuCtxGetCurrent",
    "cuGetErrorName",
    "cuGetErrorString",
)


def _stands_for(function: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def note(method: Callable[..., Any]) -> Callable[..., Any]:
        _STANDS_FOR[function] = method
        return method

    return note


class _Refused(Exception):  # noqa: N818  # no error, but how a method answers with a code
    def __init__(self, code: Any) -> None:
        self.code = code


class _Stream:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pending: deque[Work] = deque()
        self.given = self.done = 0
        self.recording: list[Work] | None = None
        self.recorder: int | None = None
        self.spoilt = False


class FakeCuda:
    """One GPU, or several, and all that was made on them.

    Attributes:
        fail: makes functions fail, by name, with a code.
        calls: how often each function was called.
        copied: bytes that were to be copied, ``up`` to the GPU and ``down`` from it; a graph counts once.
        problems: what real hardware would not forgive.
    """

    def __init__(self, memory: int = 2**28, gpus: tuple[str, ...] = ("Stand-in",)) -> None:
        self.fail: dict[str, Any] = {}
        self.calls: Counter[str] = Counter()
        self.copied: Counter[str] = Counter()
        self.problems: list[str] = []
        self._memory = memory
        self._gpus = gpus
        self._broken: Any = None
        self._numbers = count(1)
        self._retained: Counter[int] = Counter()
        self._thread = threading.local()
        self._blocks: dict[str, dict[int, Any]] = {"device": {}, "pinned": {}}
        self._streams: dict[int, _Stream] = {}
        self._events: dict[int, tuple[_Stream, int | None]] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._launchable: dict[int, list[Work]] = {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Replace the functions of the driver, as far as there is a stand-in; others need a driver and fail."""
        for function in _STANDS_FOR:
            patch.setattr(driver, function, partial(self._call, function))
        patch.setattr("autoreg.runtime.engines.tensorrt.cuda.find_gpus", lambda: self._gpus)

    def leaks(self) -> dict[str, int]:
        """How many things of each kind were made and not freed."""
        made = self._blocks | {"stream": self._streams, "event": self._events}
        made |= {"graph": self._graphs, "launchable": self._launchable, "context": +self._retained}
        return {kind: len(things) for kind, things in made.items() if things}

    def check(self) -> None:
        """Make sure that all was freed, and not too early."""
        if self.leaks():
            gc.collect()  # an error that was raised holds the frames that it came through
        assert (self.problems, self.leaks()) == ([], {})

    def used(self) -> int:
        """Bytes of the GPU that are taken."""
        return sum(map(len, self._blocks["device"].values()))

    def give(self, stream: int, work: Work) -> None:
        """Have something done by a stream: what a kernel would be."""
        known = self._stream(stream)
        if known.recording is not None:
            known.recording.append(work)
        else:
            known.pending.append(work)
            known.given += 1

    def _call(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        self.calls[function] += 1
        try:
            if function in self.fail:
                if function == "cuStreamEndCapture":  # it ends, whether that gives a graph or not
                    self._graphs.pop(int(self._end(*arguments)))
                raise _Refused(self.fail[function])
            if function not in _NEEDS_NO_CONTEXT:
                self._check_context()
            answer = _STANDS_FOR[function](self, *arguments)
        except _Refused as refused:
            return refused.code, None
        return (Code.CUDA_SUCCESS, *(answer if isinstance(answer, tuple) else () if answer is None else (answer,)))

    def _check_context(self) -> None:
        stack = self._stack()
        if not stack or stack[-1] is None:
            raise _Refused(Code.CUDA_ERROR_INVALID_CONTEXT)
        if not self._retained[stack[-1]]:
            raise _Refused(Code.CUDA_ERROR_CONTEXT_IS_DESTROYED)
        if self._broken is not None:
            raise _Refused(self._broken)

    def _stack(self) -> list[Any]:
        if not hasattr(self._thread, "stack"):
            self._thread.stack = []
        stack: list[Any] = self._thread.stack
        return stack

    @_stands_for("cuInit")
    def _init(self, flags: int) -> None:
        assert flags == 0

    @_stands_for("cuDeviceGet")
    def _device_get(self, number: int) -> Any:
        return driver.CUdevice(number)

    @_stands_for("cuDevicePrimaryCtxRetain")
    def _retain(self, device: Any) -> Any:
        self._retained[int(device) + 1] += 1
        return driver.CUcontext(int(device) + 1)

    @_stands_for("cuDevicePrimaryCtxRelease")
    def _release(self, device: Any) -> None:
        self._retained[int(device) + 1] -= 1

    @_stands_for("cuCtxPushCurrent")
    def _push(self, context: Any) -> None:
        self._stack().append(int(context))

    @_stands_for("cuCtxPopCurrent")
    def _pop(self) -> Any:
        return driver.CUcontext(self._stack().pop())

    @_stands_for("cuCtxGetCurrent")
    def _current(self) -> Any:
        return driver.CUcontext(self._stack()[-1] if self._stack() else 0)

    @_stands_for("cuGetErrorName")
    def _error_name(self, code: Any) -> bytes:
        return str(code.name).encode()

    @_stands_for("cuGetErrorString")
    def _error_string(self, code: Any) -> bytes:
        return str(code.name).removeprefix("CUDA_ERROR_").replace("_", " ").lower().encode()

    @_stands_for("cuMemGetInfo")
    def _mem_get_info(self) -> tuple[int, int]:
        return self._memory - self.used(), self._memory

    @_stands_for("cuMemAlloc")
    def _mem_alloc(self, size: int) -> Any:
        for stream in self._streams.values():
            if stream.recorder == threading.get_ident():
                stream.spoilt = True
                raise _Refused(Code.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        if size > self._memory - self.used():
            raise _Refused(Code.CUDA_ERROR_OUT_OF_MEMORY)
        return driver.CUdeviceptr(self._allocate("device", size))

    @_stands_for("cuMemFree")
    def _mem_free(self, memory: Any) -> None:
        self._free_block("device", int(memory))

    @_stands_for("cuMemHostAlloc")
    def _mem_host_alloc(self, size: int, flags: int) -> int:
        assert flags == 0
        return self._allocate("pinned", size)

    @_stands_for("cuMemFreeHost")
    def _mem_free_host(self, address: int) -> None:
        self._free_block("pinned", address)

    def _allocate(self, kind: str, size: int) -> int:
        block = ctypes.create_string_buffer(b"\xa5" * size, size)  # nobody may rely on zeros
        address = ctypes.addressof(block)
        self._blocks[kind][address] = block
        return address

    def _free_block(self, kind: str, address: int) -> None:
        if any(stream.pending for stream in self._streams.values()):
            self.problems.append(f"{kind} memory was freed before the streams were done")
        if self._blocks[kind].pop(address, None) is None:
            raise _Refused(Code.CUDA_ERROR_INVALID_VALUE)

    def _check_block(self, kind: str, address: int, size: int) -> None:
        blocks = list(self._blocks[kind].items())
        if not any(start <= address and address + size <= start + len(block) for start, block in blocks):
            raise _Refused(Code.CUDA_ERROR_INVALID_VALUE)

    @_stands_for("cuStreamCreate")
    def _stream_create(self, flags: int) -> Any:
        assert flags == int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        number = next(self._numbers)
        self._streams[number] = _Stream()
        return driver.CUstream(number)

    @_stands_for("cuStreamDestroy")
    def _stream_destroy(self, stream: Any) -> None:
        self._work_off(self._stream(stream), self._stream(stream).given)
        del self._streams[int(stream)]

    def _stream(self, stream: Any) -> _Stream:
        if int(stream) not in self._streams:
            raise _Refused(Code.CUDA_ERROR_INVALID_HANDLE)
        return self._streams[int(stream)]

    def _work_off(self, stream: _Stream, until: int) -> None:
        with stream.lock:
            while stream.done < until:
                work = stream.pending.popleft()
                stream.done += 1
                try:
                    work()
                except _Refused:
                    self._broken = Code.CUDA_ERROR_ILLEGAL_ADDRESS
                except Exception as error:
                    self.problems.append(repr(error))
                    self._broken = Code.CUDA_ERROR_LAUNCH_FAILED
        if self._broken is not None:
            raise _Refused(self._broken)

    @_stands_for("cuStreamIsCapturing")
    def _is_capturing(self, stream: Any) -> Any:
        status = driver.CUstreamCaptureStatus
        recording = self._stream(stream).recording is not None
        return status.CU_STREAM_CAPTURE_STATUS_ACTIVE if recording else status.CU_STREAM_CAPTURE_STATUS_NONE

    @_stands_for("cuStreamBeginCapture")
    def _begin(self, stream: Any, mode: Any) -> None:
        assert mode == driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        known = self._stream(stream)
        if known.recording is not None:
            raise _Refused(Code.CUDA_ERROR_ILLEGAL_STATE)
        known.recording, known.recorder, known.spoilt = [], threading.get_ident(), False

    @_stands_for("cuStreamEndCapture")
    def _end(self, stream: Any) -> Any:
        known = self._stream(stream)
        if known.recording is None:
            raise _Refused(Code.CUDA_ERROR_ILLEGAL_STATE)
        if known.recorder != threading.get_ident():
            raise _Refused(Code.CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD)
        recorded, known.recording, known.recorder = known.recording, None, None
        if known.spoilt:
            raise _Refused(Code.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
        number = next(self._numbers)
        self._graphs[number] = recorded
        return driver.CUgraph(number)

    @_stands_for("cuGraphInstantiate")
    def _instantiate(self, graph: Any, flags: int) -> Any:
        assert flags == 0
        number = next(self._numbers)
        self._launchable[number] = list(self._graphs[int(graph)])
        return driver.CUgraphExec(number)

    @_stands_for("cuGraphDestroy")
    def _graph_destroy(self, graph: Any) -> None:
        del self._graphs[int(graph)]

    @_stands_for("cuGraphExecDestroy")
    def _launchable_destroy(self, graph: Any) -> None:
        del self._launchable[int(graph)]

    @_stands_for("cuGraphLaunch")
    def _launch(self, graph: Any, stream: Any) -> None:
        for work in self._launchable[int(graph)]:
            self.give(int(stream), work)

    @_stands_for("cuStreamQuery")
    def _query(self, stream: Any) -> None:
        if self._stream(stream).pending:
            raise _Refused(Code.CUDA_ERROR_NOT_READY)

    @_stands_for("cuEventCreate")
    def _event_create(self, _flags: int) -> Any:
        number = next(self._numbers)
        self._events[number] = _Stream(), 0
        return driver.CUevent(number)

    @_stands_for("cuEventDestroy")
    def _event_destroy(self, event: Any) -> None:
        del self._events[int(event)]

    @_stands_for("cuEventRecord")
    def _event_record(self, event: Any, stream: Any) -> None:
        known = self._stream(stream)
        self._events[int(event)] = known, known.given if known.recording is None else None

    @_stands_for("cuEventSynchronize")
    def _event_synchronize(self, event: Any) -> None:
        stream, until = self._events[int(event)]
        if until is None:
            raise _Refused(Code.CUDA_ERROR_CAPTURED_EVENT)
        self._work_off(stream, until)

    @_stands_for("cuMemcpyHtoDAsync")
    def _upload(self, target: Any, source: int, size: int, stream: Any) -> None:
        self.copied["up"] += size
        self._copy(("device", int(target)), ("pinned", source), size, stream)

    @_stands_for("cuMemcpyDtoHAsync")
    def _download(self, target: int, source: Any, size: int, stream: Any) -> None:
        self.copied["down"] += size
        self._copy(("pinned", target), ("device", int(source)), size, stream)

    @_stands_for("cuMemcpyDtoDAsync")
    def _copy_inside(self, target: Any, source: Any, size: int, stream: Any) -> None:
        self._copy(("device", int(target)), ("device", int(source)), size, stream)

    def _copy(self, target: tuple[str, int], source: tuple[str, int], size: int, stream: Any) -> None:
        def copy() -> None:
            for kind, address in (target, source):
                self._check_block(kind, address, size)
            ctypes.memmove(target[1], source[1], size)

        for kind, address in (target, source):
            self._check_block(kind, address, size)
        self.give(int(stream), copy)

    @_stands_for("cuMemsetD8Async")
    def _fill(self, target: Any, value: int, size: int, stream: Any) -> None:
        def fill() -> None:
            self._check_block("device", int(target), size)
            ctypes.memset(int(target), value, size)

        self._check_block("device", int(target), size)
        self.give(int(stream), fill)

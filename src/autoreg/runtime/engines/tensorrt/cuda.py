"""The few calls of CUDA's driver that an engine needs: each is checked, and what was made on a GPU is freed with it."""

import ctypes
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import EngineError
from autoreg.runtime.devices import find_gpus, import_library

_log = logging.getLogger("autoreg")

MIB = 2**20
MORE_MEMORY = "build the engine for smaller tiles or batches, or end what else takes memory"
"""What helps where there is not enough of it: to build the same engine again does not."""


def call(function: str, *arguments: Any) -> Any:
    """What a function of the driver answers: nothing, a value, or several.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        EngineError: the function failed.
    """
    code, *answers = getattr(_driver(), function)(*arguments)
    results = _driver().CUresult
    if code != results.CUDA_SUCCESS:
        advice = MORE_MEMORY if code == results.CUDA_ERROR_OUT_OF_MEMORY else "look at what nvidia-smi says of the GPU"
        raise EngineError(f"CUDA's {function} failed with {_describe(code)}; {advice}")
    return answers[0] if len(answers) == 1 else tuple(answers)


class Gpu:
    """A GPU, and what was made on it.

    Its context is the primary one, which TensorRT, ONNX Runtime and PyTorch share. It must be ``current`` in the thread that
    makes something on the GPU or uses it.

    Attributes:
        name: of the GPU.
    """

    def __init__(self, number: int) -> None:
        """Take hold of a GPU.

        Args:
            number: of the GPU, in the order of CUDA, from 0.

        Raises:
            MissingDependencyError: cuda-bindings is not installed.
            EngineError: there is no such GPU.
        """
        names = find_gpus()
        if not 0 <= number < len(names):
            raise EngineError(
                f"there is no GPU {number}: the NVIDIA driver shows {len(names)}; "
                f"look at what nvidia-smi lists and what CUDA_VISIBLE_DEVICES is"
            )
        self.name = names[number]
        call("cuInit", 0)
        self._device = call("cuDeviceGet", number)
        self._context = call("cuDevicePrimaryCtxRetain", self._device)
        self._made = ExitStack()
        self._closed = False

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make CUDA use this GPU in the calling thread, which may have used another and does so again afterwards."""
        call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            call("cuCtxPopCurrent")

    def free_bytes(self) -> int:
        """Memory of the GPU that nobody has taken."""
        free, _ = call("cuMemGetInfo")
        return int(free)

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes of the GPU's memory."""
        memory = call("cuMemAlloc", size)
        self.on_close(_free, "cuMemFree", memory)
        return int(memory)

    def allocate_pinned(self, size: int) -> NDArray[np.uint8]:
        """``size`` bytes of the computer's memory that the GPU copies from and to by itself, while others compute."""
        address = call("cuMemHostAlloc", size, 0)
        self.on_close(_free, "cuMemFreeHost", address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))

    def on_close(self, free: Callable[..., object], *arguments: Any) -> None:
        """Have something freed by ``close``: what was made last is freed first."""
        self._made.callback(free, *arguments)

    def close(self) -> None:
        """Free what was made on the GPU; nothing may use it any more. Whatever cannot be freed is logged."""
        if self._closed:
            return
        self._closed = True
        try:
            with self.current():
                self._made.close()
        finally:
            _free("cuDevicePrimaryCtxRelease", self._device)


class Graph:
    """Work that was recorded, to be launched again and again as one: on the same addresses, in the same shapes."""

    def __init__(self, recorded: Any) -> None:
        self.handle = call("cuGraphInstantiate", recorded, 0)

    def close(self) -> None:
        """Free it; it may not be launched any more."""
        _free("cuGraphExecDestroy", self.handle)


class Stream:
    """Work for a GPU, done one after the other, beside the work of other streams.

    Attributes:
        handle: what other libraries know it by.
    """

    def __init__(self, gpu: Gpu) -> None:
        driver = _driver()
        # Else the work of a library that knows no streams, anywhere in the process, would stop that of this one.
        self._stream = call("cuStreamCreate", int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        gpu.on_close(_free, "cuStreamDestroy", self._stream)
        flags = driver.CUevent_flags
        # A thread that spins while it waits takes its core from the threads that read and write.
        self._done = call("cuEventCreate", int(flags.CU_EVENT_BLOCKING_SYNC) | int(flags.CU_EVENT_DISABLE_TIMING))
        gpu.on_close(_free, "cuEventDestroy", self._done)
        self.handle = int(self._stream)

    def upload(self, source: NDArray[Any], target: int) -> None:
        """Copy an array of pinned memory, which may not change before ``wait``, to an address of the GPU's memory."""
        call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, self._stream)

    def download(self, source: int, target: NDArray[Any]) -> None:
        """Copy from an address of the GPU's memory into an array of pinned memory, which has it after ``wait``."""
        call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, self._stream)

    def launch(self, graph: Graph) -> None:
        """Have the work of a graph done."""
        call("cuGraphLaunch", graph.handle, self._stream)

    def wait(self) -> None:
        """Wait until all is done that the stream was given so far.

        Raises:
            EngineError: some of it failed.
        """
        call("cuEventRecord", self._done, self._stream)
        call("cuEventSynchronize", self._done)

    def record(self, enqueue: Callable[[], None]) -> Graph:
        """Make a graph of the work that ``enqueue`` gives to this stream; none of it is done.

        Raises:
            EngineError: some of the work cannot be part of a graph.
        """
        try:
            # What other threads do meanwhile is none of this graph's business.
            mode = _driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
            call("cuStreamBeginCapture", self._stream, mode)
            enqueue()
            recorded = call("cuStreamEndCapture", self._stream)
        except BaseException:
            self._drop_recording()
            raise
        try:
            return Graph(recorded)
        finally:
            _free("cuGraphDestroy", recorded)

    def _drop_recording(self) -> None:
        """End a recording that has failed, if it has begun; there may be a graph of what came before."""
        code, recorded = _driver().cuStreamEndCapture(self._stream)
        if code == _driver().CUresult.CUDA_SUCCESS:
            _free("cuGraphDestroy", recorded)


@functools.cache
def _driver() -> ModuleType:
    return import_library("cuda.bindings.driver")


def _describe(code: Any) -> str:
    """Name and text of an error of the driver."""
    _, name = _driver().cuGetErrorName(code)
    _, text = _driver().cuGetErrorString(code)
    return f"{name.decode()} ({text.decode()})" if name and text else f"error {int(code)}"


def _free(function: str, handle: Any) -> None:
    """Free something. After some errors CUDA frees nothing more: to raise that would hide the error."""
    try:
        call(function, handle)
    except EngineError as error:
        _log.warning("%s", str(error))

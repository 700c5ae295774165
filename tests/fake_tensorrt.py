"""A stand-in for TensorRT that goes by its rules, and has only what all versions have of which the names were recorded.

It computes for real: what it is given to compute with puts work on the stream that TensorRT would put its kernels on.
"""

import ctypes
import hashlib
import importlib
import json
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import autoreg
from autoreg.runtime.engines.tensorrt import library
from autoreg.runtime.engines.tensorrt.engine_file import EngineFile
from autoreg.runtime.engines.tensorrt.library import Library
from autoreg.spec import ModelSpec
from fake_cuda import FakeCuda

driver: Any = importlib.import_module("cuda.bindings.driver")
NAMES: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / "runtime/tensorrt_names.json").read_text())
VERSION = "10.13.3.9"
_MAGIC = b"an engine of the stand-in\n"


class Tensor(NamedTuple):
    """Where a tensor is, and how to read it."""

    address: int
    shape: tuple[int, ...]
    kind: np.dtype[Any]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.kind.itemsize

    def array(self) -> NDArray[Any]:
        """Its memory, if it is the computer's own."""
        block = (ctypes.c_uint8 * self.size).from_address(self.address)
        return np.ctypeslib.as_array(block).view(self.kind).reshape(self.shape)


Compute = Callable[[bytes, dict[str, Tensor], int], None]
"""Puts the computation of a model on a stream."""


def common_names(kind: str) -> set[str]:
    """What a class of TensorRT has in all versions."""
    return set.intersection(*(set(names[kind]) for names in NAMES.values()))


def make_engine(
    model: bytes, spec: ModelSpec, tile_shape: tuple[int, int], batch_size: int, *, uint8_input: bool = False, **said: Any
) -> tuple[bytes, EngineFile]:
    """What building a model would give: an engine, and what it is; ``said`` is what the engine says of itself instead."""
    bands, stride = len(spec.bands), spec.stride
    tile = batch_size, bands, *tile_shape
    larger = batch_size, bands, tile_shape[0] + stride, tile_shape[1] + stride
    facts = {
        "image": "UINT8" if uint8_input else "FLOAT",
        "clusters": spec.clusters,
        "stride": stride,
        "profiles": [[tile, tile, tile], [(1, bands, stride, stride), tile, larger]],
        "scratch_bytes": 2**20,
        "recordable": True,
    }
    plan = _MAGIC + json.dumps(facts | said).encode() + b"\n" + model
    digest = hashlib.sha256(model).hexdigest()
    described = EngineFile(
        flavour="tensorrt",
        version=VERSION,
        compute_capabilities=("9.0",),
        gpu="Stand-in",
        tile_shape=tile_shape,
        batch_size=batch_size,
        uint8_input=uint8_input,
        tf32=False,
        model="model.onnx",
        model_digest=digest,
        graph_digest=digest,
        engine_digest=hashlib.sha256(plan).hexdigest(),
        spec=spec,
        parity=None,
        lane_bytes=None,
        autoreg_version=autoreg.__version__,
    )
    return plan, described


@contextmanager
def installed(compute: Compute, name: str = "tensorrt") -> Iterator[Library]:
    """Let the stand-in be the library of this name that is found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, make_module(compute, name))
        library._load.cache_clear()
        try:
            yield library.find_library(name)
        finally:
            library._load.cache_clear()


def compute_with_onnx_runtime(cuda: FakeCuda) -> Compute:
    """Compute what the model says, on the memory at the addresses of the tensors."""
    import onnxruntime

    @cache
    def load(model: bytes) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_mem_pattern = False
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def compute(model: bytes, tensors: dict[str, Tensor], stream: int) -> None:
        def work() -> None:
            takes_uint8 = load(model).get_inputs()[0].type == "tensor(uint8)"
            image = tensors["image"].array().astype(np.uint8 if takes_uint8 else np.float32)
            for name, answer in zip(
                ("labels", "logits"), load(model).run(["labels", "logits"], {"image": image}), strict=True
            ):
                tensors[name].array()[...] = answer

        cuda.give(stream, work)

    return compute


def copy_first_band(_model: bytes, tensors: dict[str, Tensor], stream: int) -> None:
    """Say that each pixel's label is its first band, and that all logits are 0: work that a driver does without a kernel."""
    image, labels, logits = tensors["image"], tensors["labels"], tensors["logits"]
    count, bands, height, width = image.shape
    for index in range(count):
        target = labels.address + index * height * width
        source = image.address + index * bands * height * width
        _check(driver.cuMemcpyDtoDAsync(target, source, height * width, stream))
    _check(driver.cuMemsetD8Async(logits.address, 0, logits.size, stream))


def _check(answer: tuple[Any, ...]) -> Any:
    assert answer[0] == driver.CUresult.CUDA_SUCCESS, answer
    return answer[-1]


def make_module(compute: Compute, name: str) -> ModuleType:
    """The library, as far as an executor needs it, and what a builder is told."""
    rtx = name == "tensorrt_rtx"

    class DataType(Enum):
        UINT8 = 1
        FLOAT = 0

    class DynamicShapesKernelSpecializationStrategy(Enum):
        LAZY, EAGER, NONE = range(3)

    class IRuntimeConfig:
        dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def log(self, severity: int, message: str) -> None:
            raise NotImplementedError

    class BuilderFlag(Enum):
        TF32 = 0

    class IBuilderConfig:
        max_aux_streams = -1

        def __init__(self) -> None:
            self._flags = {BuilderFlag.TF32}

        def clear_flag(self, flag: BuilderFlag) -> None:
            self._flags.discard(flag)

        def get_flag(self, flag: BuilderFlag) -> bool:
            return flag in self._flags

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            pass

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
            if not serialized_engine.startswith(_MAGIC):
                self._logger.log(ILogger.ERROR, "IRuntime::deserializeCudaEngine: magicTag mismatch: it is no engine")
                return None
            facts, model = serialized_engine[len(_MAGIC) :].split(b"\n", 1)
            try:
                return ICudaEngine(self._logger, json.loads(facts), model)
            except MemoryError:
                _say_out_of_memory(self._logger)
                return None

    class ICudaEngine:
        def __init__(self, logger: ILogger, facts: dict[str, Any], model: bytes) -> None:
            self._logger = logger
            self._facts = facts
            self._model = model
            self._types = {"image": DataType[facts["image"]], "labels": DataType.UINT8, "logits": DataType.FLOAT}
            self._weights = _Memory(len(model))

        @property
        def device_memory_size_v2(self) -> int:
            return int(self._facts["scratch_bytes"])

        @property
        def num_io_tensors(self) -> int:
            return len(self._types)

        def get_tensor_name(self, index: int) -> str:
            return list(self._types)[index]

        def get_tensor_dtype(self, name: str) -> DataType:
            return self._types[name]

        def create_runtime_config(self) -> IRuntimeConfig:
            return IRuntimeConfig()

        def create_execution_context(self, runtime_config: IRuntimeConfig | None = None) -> "IExecutionContext | None":
            strategy = (runtime_config or IRuntimeConfig()).dynamic_shapes_kernel_specialization_strategy
            lazy = rtx and strategy is DynamicShapesKernelSpecializationStrategy.LAZY
            try:
                return IExecutionContext(self, lazy)
            except MemoryError:
                _say_out_of_memory(self._logger)
                return None

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine, lazy: bool) -> None:
            self._engine = engine
            self._lazy = lazy
            self._scratch = _Memory(engine.device_memory_size_v2)
            self._profile = 0
            self._shape: tuple[int, ...] | None = None
            self._addresses: dict[str, int] = {}
            self._deferred = True
            self._switched_on: int | None = None
            self._running = threading.Lock()

        @property
        def active_optimization_profile(self) -> int:
            return self._profile

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            if not 0 <= profile_index < len(self._engine._facts["profiles"]):
                self._fail(f"there is no profile {profile_index}")
                raise RuntimeError("Error in set optimization profile async.")
            self._profile, self._shape, self._deferred = profile_index, None, True
            self._switched_on = stream_handle
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            least, _, most = self._engine._facts["profiles"][self._profile]
            if name != "image" or not all(low <= side <= high for low, side, high in zip(least, shape, most, strict=True)):
                return self._fail(f"Static dimension mismatch while setting input shape for {name}: {shape}")
            self._shape, self._deferred = shape, True
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if self._shape is None:
                return (-1,)
            count, _, height, width = self._shape
            stride, clusters = self._engine._facts["stride"], self._engine._facts["clusters"]
            shapes = {"labels": (count, height, width), "logits": (count, clusters, height // stride, width // stride)}
            return (shapes | {"image": self._shape})[name]

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return name in self._engine._types

        def execute_async_v3(self, stream_handle: int) -> bool:
            if not self._running.acquire(blocking=False):
                return self._fail("a context was used by two threads at once")
            try:
                return self._execute(stream_handle)
            finally:
                self._running.release()

        def _execute(self, stream: int) -> bool:
            if missing := self._engine._types.keys() - self._addresses.keys():
                return self._fail(f"Neither address nor allocator is set for {missing}")
            if self._shape is None:
                return self._fail("no shape is set for image")
            if self._switched_on not in (None, stream):
                return self._fail("the profile was switched on another stream, which nobody has waited for")
            recording = (
                _check(driver.cuStreamIsCapturing(stream)) == driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE
            )
            if recording and self._deferred:
                return self._fail("operation not permitted when stream is capturing: updates after a new shape")
            if recording and self._lazy:
                return self._fail("operation not permitted when stream is capturing: kernels are being compiled")
            if recording and not self._engine._facts["recordable"]:
                return self._fail("operation not permitted when stream is capturing: a layer allocates memory")
            self._deferred = self._deferred and recording
            kinds: dict[Any, np.dtype[Any]] = {DataType.UINT8: np.dtype(np.uint8), DataType.FLOAT: np.dtype(np.float32)}
            tensors = {
                name: Tensor(self._addresses[name], self.get_tensor_shape(name), kinds[kind])
                for name, kind in self._engine._types.items()
            }
            compute(self._engine._model, tensors, stream)
            return True

        def _fail(self, message: str) -> bool:
            self._engine._logger.log(ILogger.ERROR, f"IExecutionContext: {message}")
            return False

    module = ModuleType(name)
    module.__dict__.update(
        __version__=VERSION,
        Builder=Builder,
        BuilderFlag=BuilderFlag,
        DataType=DataType,
        IBuilderConfig=IBuilderConfig,
        ILogger=ILogger,
        Runtime=Runtime,
        ICudaEngine=ICudaEngine,
        IExecutionContext=IExecutionContext,
    )
    if rtx:
        module.__dict__["DynamicShapesKernelSpecializationStrategy"] = DynamicShapesKernelSpecializationStrategy
    return module


def _say_out_of_memory(logger: Any) -> None:
    """What TensorRT logs, and how."""
    logger.log(logger.ERROR, "[defaultAllocator.cpp::allocate::57] Error Code 1: Cuda Runtime (out of memory)")
    logger.log(logger.WARNING, "Requested amount of GPU memory (1 bytes) could not be allocated.")
    logger.log(logger.ERROR, "[safeDeserialize.cpp::load::269] Error Code 2: OutOfMemory (no further information)")


class _Memory:
    """Memory of the GPU that TensorRT takes for itself, and gives back with the object that it was for."""

    def __init__(self, size: int) -> None:
        code, memory = driver.cuMemAlloc(size)
        if code != driver.CUresult.CUDA_SUCCESS:
            raise MemoryError
        self._memory = memory

    def __del__(self) -> None:
        if hasattr(self, "_memory"):
            driver.cuMemFree(self._memory)

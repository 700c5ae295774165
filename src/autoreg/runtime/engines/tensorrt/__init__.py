"""TensorRT, and TensorRT for RTX, on NVIDIA GPUs: engines are built from a model file, kept beside it, and run."""

from autoreg.runtime.engines.tensorrt.build import build_engine
from autoreg.runtime.engines.tensorrt.compilation import BuildOptions
from autoreg.runtime.engines.tensorrt.engine_file import EngineFile, read_engine_file
from autoreg.runtime.engines.tensorrt.executor import TensorRtEngine
from autoreg.runtime.engines.tensorrt.load import describe_engine, load_tensorrt

__all__ = [
    "BuildOptions",
    "EngineFile",
    "TensorRtEngine",
    "build_engine",
    "describe_engine",
    "load_tensorrt",
    "read_engine_file",
]

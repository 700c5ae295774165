"""A machine with a GPU and TensorRT, of stand-ins that compute what a model says, and a model to build engines of in it."""

import dataclasses
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

import autoreg.runtime.engines.tensorrt.build as building
from autoreg.runtime.engines.tensorrt import BuildOptions
from autoreg.runtime.engines.tensorrt.library import Library
from autoreg.spec import ModelSpec
from conftest import Models
from fake_cuda import FakeCuda
from fake_tensorrt import Tensor, compute_with_onnx_runtime, installed, make_engine

CAPABILITY = "9.0"


@dataclasses.dataclass
class Machine:
    """What is in the machine of a test.

    Attributes:
        capability: of its only GPU.
        gpu: its name.
        wrong: whether the library makes engines that give other labels than the model.
        built: the options of each engine that was built.
    """

    capability: str = CAPABILITY
    gpu: str = "Stand-in"
    wrong: bool = False
    built: list[BuildOptions] = dataclasses.field(default_factory=list)

    def compile(
        self, model: bytes, name: str, spec: ModelSpec, options: BuildOptions, library: Library, progress: object
    ) -> bytes:
        del name, library, progress
        self.built.append(options)
        return make_engine(model, spec, options.tile_shape(spec), options.batch_size, uint8_input=spec.takes_uint8)[0]


@pytest.fixture(name="model")
def copy_model(models: Models, tmp_path: Path) -> Path:
    """An untrained model of two bands of bytes, alone in a folder: engines are built beside it."""
    path = tmp_path / "model.onnx"
    path.write_bytes(models(2, "uint8").read_bytes())
    return path


@pytest.fixture(name="machine")
def make_machine(monkeypatch: pytest.MonkeyPatch, models: Models) -> Iterator[Machine]:
    models(2, "uint8")  # the exporter had better not find a stand-in
    found, cuda = Machine(), FakeCuda()
    cuda.install(monkeypatch)
    for module in ("devices", "several"):
        monkeypatch.setattr(f"autoreg.runtime.{module}.find_gpus", lambda: ("Stand-in",))
    for module in ("build", "load"):
        name = f"autoreg.runtime.engines.tensorrt.{module}.find_compute_capabilities"
        monkeypatch.setattr(name, lambda: (found.capability,))
        monkeypatch.setattr(f"autoreg.runtime.engines.tensorrt.{module}.find_gpus", lambda: (found.gpu,))
    monkeypatch.setattr(building, "compile_model", found.compile)
    right = compute_with_onnx_runtime(cuda)

    def compute(model: bytes, tensors: dict[str, Tensor], stream: int) -> None:
        right(model, tensors, stream)
        if found.wrong:
            cuda.give(stream, lambda: tensors["labels"].array().fill(0))

    with installed(compute):
        yield found
        gc.collect()  # engines that nobody holds any more are closed while there is what frees their memory

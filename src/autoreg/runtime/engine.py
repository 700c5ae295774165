"""Engine: whatever turns tiles into labels."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import ConfigError, EngineError
from autoreg.runtime.devices import AUTO, TENSORRT, Device, choose_device
from autoreg.runtime.model_file import read_model
from autoreg.spec import ModelSpec

Images = NDArray[np.float32 | np.uint8]
"""(N, C, H, W) raw pixel values; H and W are multiples of the model's stride. uint8 only where the model takes it."""
Labels = NDArray[np.uint8]
"""(N, H, W), clusters 0 .. K-1. What a map says for each is in the spec's classes."""
Logits = NDArray[np.floating[Any]]
"""(N, K, H / stride, W / stride), float32 from every engine. Upsampled bilinearly, their softmax are the probabilities and
their argmax the labels."""

ENGINE_SUFFIX = ".engine"
"""Of files that TensorRT compiled; all others are models."""


class Prediction(NamedTuple):
    """What an engine says about a batch of images."""

    labels: Labels
    logits: Logits


class Engine(Protocol):
    """Runs one model. Same input, same output: an engine keeps no state between calls."""

    @property
    def spec(self) -> ModelSpec:
        """What the model promises."""
        ...

    @property
    def model_digest(self) -> str:
        """SHA-256 of the model file, hexadecimal."""
        ...

    @property
    def device(self) -> str:
        """Which library runs the model, and on what, in words."""
        ...

    @property
    def lanes(self) -> int:
        """How many calls, made at once from as many threads, keep it busy; any thread may call it."""
        ...

    def label(self, images: Images) -> Labels:
        """Labels of ``images``."""
        ...

    def predict(self, images: Images) -> Prediction:
        """Labels and logits of ``images``."""
        ...


def load_engine(
    path: str | Path,
    *,
    device: str = AUTO,
    threads: int | None = None,
    lanes: int = 1,
    rebuild: bool = True,
    tile_px: int | None = None,
    batch_size: int | None = None,
) -> Engine:
    """Load a model file that ``autoreg export`` wrote, or an engine that ``autoreg build`` made of one.

    An engine is code: load none that you would not run as a program.

    Args:
        path: the ``.onnx`` file, or an ``.engine``, which runs on the device ``tensorrt``.
        device: ``cpu`` or ``cuda``, which is ONNX Runtime, ``openvino``, which is OpenVINO on the CPU, or ``tensorrt``, on a
            GPU; ``auto`` takes the one that ``autoreg bench`` found fastest for this model here, else the GPU if there is
            one that ONNX Runtime can use, else the CPU. To ask for one that is not there is an error.
        threads: processor threads of a call; if None, an equal share for each lane of all that there are.
        lanes: how many calls are to be made at once. For many tiles, as many as there are processor cores are fastest, since
            no thread has to wait for another; each needs the memory of a tile. They are spread over the GPUs of a kind.
        rebuild: TensorRT runs the ``.engine`` beside a model. If that is not there, or was built for another GPU, by another
            version, from another model or for other tiles, it is built, with a warning that says why; if False, it is an
            error.
        tile_px: side of the tiles that such an engine has to be for; if None, any.
        batch_size: how many of them it has to take at once; likewise.

    Raises:
        ModelError: no such file, not an ONNX model, one without a valid ModelSpec, or one that autoreg would not write.
        ConfigError: there is no device of this name.
        MissingDependencyError: the library of the device is not installed.
        EngineError: the device is not there, or the library does not run the model on it, or an engine is not the one that
            was built.
        ParityError: an engine was built that does not say what the model says.
    """
    path = Path(path)
    chosen = choose_for(path, device)
    if chosen.name == TENSORRT:
        from autoreg.runtime.engines.tensorrt import load_tensorrt

        return load_tensorrt(path, lanes=lanes, rebuild=rebuild, tile_px=tile_px, batch_size=batch_size)
    model = read_model(path)
    if chosen.provider is None:
        from autoreg.runtime.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(model, str(path), threads=threads, lanes=lanes)
    from autoreg.runtime.engines.onnxruntime import OnnxRuntimeEngine

    if not chosen.gpu:
        return OnnxRuntimeEngine(model, str(path), provider=chosen.provider, threads=threads, lanes=lanes)
    from autoreg.runtime.several import load_on_gpus

    provider = chosen.provider
    return load_on_gpus(
        lambda gpu, share: OnnxRuntimeEngine(model, str(path), provider=provider, gpu=gpu, lanes=share), lanes=lanes
    )


def choose_for(path: Path, device: str = AUTO, *, require_gpu: bool = False) -> Device:
    """The device that runs a model or an engine, see ``choose_device``.

    Raises:
        ModelError: there is no model.
        ConfigError: an engine was given and another device than TensorRT was asked for.
    """
    if path.suffix == ENGINE_SUFFIX:
        if device not in (AUTO, TENSORRT):
            raise ConfigError(f"{path} is an engine of TensorRT, and the device {device} was asked for; give the .onnx file")
        return choose_device(TENSORRT, require_gpu=require_gpu)
    digest = hashlib.sha256(read_model(path)).hexdigest()
    return choose_device(device, model_digest=digest, require_gpu=require_gpu)


def check_images(images: Images, spec: ModelSpec) -> None:
    """Refuse what a model of this spec cannot take; what the values are is not looked at.

    Raises:
        EngineError: the images have another type, number of bands or axes, or sides off the stride.
    """
    stride, bands = spec.stride, len(spec.bands)
    shape = images.shape
    if len(shape) != 4 or 0 in shape or shape[1] != bands or shape[2] % stride or shape[3] % stride:
        raise EngineError(
            f"the engine got images of shape {shape}, expected (images, {bands} bands, height, width) "
            f"with sides that are multiples of {stride}; segment_array cuts and pads an image of any size"
        )
    accepted = ("float32", "uint8") if spec.takes_uint8 else ("float32",)
    if images.dtype.name not in accepted:
        raise EngineError(
            f"the engine got images of type {images.dtype}, expected {' or '.join(accepted)}; convert them with astype"
        )


def check_answer(images: Images, spec: ModelSpec, labels: Labels, logits: Logits | None = None) -> None:
    """Refuse an answer that is not what the spec promises, so that a model with the spec of another makes no map.

    Raises:
        EngineError: labels or logits have another type or shape, or a label is no cluster.
    """
    count, _, height, width = images.shape
    expected = (count, height, width)
    if labels.shape != expected or labels.dtype != np.uint8 or labels.max() >= spec.clusters:
        raise EngineError(
            f"the model gave labels of shape {labels.shape} and type {labels.dtype} up to {labels.max(initial=0)}, expected "
            f"{expected}, uint8, up to {spec.clusters - 1}: its spec is not its own; export it again"
        )
    cells = (count, spec.clusters, height // spec.stride, width // spec.stride)
    if logits is not None and (logits.shape != cells or logits.dtype != np.float32):
        raise EngineError(
            f"the model gave logits of shape {logits.shape} and type {logits.dtype}, expected {cells}, float32: "
            f"its spec is not its own; export it again"
        )

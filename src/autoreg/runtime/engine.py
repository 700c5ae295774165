"""Engine: whatever turns tiles into labels."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import EngineError
from autoreg.runtime.devices import AUTO, choose_device
from autoreg.runtime.model_file import read_model
from autoreg.spec import ModelSpec

Images = NDArray[np.float32]
"""(N, C, H, W) raw pixel values; H and W are multiples of the model's stride."""
Labels = NDArray[np.uint8]
"""(N, H, W), clusters 0 .. K-1. What a map says for each is in the spec's classes."""
Logits = NDArray[np.floating[Any]]
"""(N, K, H / stride, W / stride), float32 from every engine. Upsampled bilinearly, their softmax are the probabilities and
their argmax the labels."""


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


def load_engine(path: str | Path, *, device: str = AUTO, threads: int | None = None, lanes: int = 1) -> Engine:
    """Load a model file that ``autoreg export`` wrote.

    Args:
        path: the ``.onnx`` file.
        device: ``cpu`` or ``cuda``, which is ONNX Runtime, or ``openvino``, which is OpenVINO on the CPU; ``auto`` takes the
            one that ``autoreg bench`` found fastest for this model on this machine, else the GPU if there is one that ONNX
            Runtime can use, else the CPU. To ask for one that is not there is an error.
        threads: processor threads of a call; if None, an equal share for each lane of all that there are.
        lanes: how many calls are to be made at once. For many tiles, as many as there are processor cores are fastest, since
            no thread has to wait for another; each needs the memory of a tile.

    Raises:
        ModelError: no such file, not an ONNX model, one without a valid ModelSpec, or one that autoreg would not write.
        ConfigError: there is no device of this name.
        MissingDependencyError: the library of the device is not installed.
        EngineError: the device is not there, or the library does not run the model on it.
    """
    model = read_model(Path(path))
    chosen = choose_device(device, model_digest=hashlib.sha256(model).hexdigest())
    if chosen.provider is None:
        from autoreg.runtime.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(model, str(path), threads=threads, lanes=lanes)
    from autoreg.runtime.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(model, str(path), provider=chosen.provider, threads=threads, lanes=lanes)


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
    if images.dtype != np.float32:
        raise EngineError(f"the engine got images of type {images.dtype}, expected float32; convert them with astype")


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

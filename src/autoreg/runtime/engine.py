"""Engine: whatever turns tiles into labels."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

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
        """How many calls, made at once from as many threads, keep it busy; each thread may call it."""
        ...

    def label(self, images: Images) -> Labels:
        """Labels of ``images``."""
        ...

    def predict(self, images: Images) -> Prediction:
        """Labels and logits of ``images``."""
        ...


def load_engine(path: str | Path, *, threads: int | None = None, lanes: int = 1) -> Engine:
    """Load a model file that ``autoreg export`` wrote.

    Args:
        path: the ``.onnx`` file.
        threads: processor threads of a call; if None, an equal share for each lane of all that there are.
        lanes: how many calls are to be made at once. For many tiles, as many as there are processor cores are fastest, since
            no thread has to wait for another; each needs the memory of a tile.

    Raises:
        ModelError: no such file, not an ONNX model, or one without a valid ModelSpec.
        MissingDependencyError: onnxruntime is not installed.
    """
    from autoreg.runtime.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine.from_file(Path(path), threads=threads, lanes=lanes)

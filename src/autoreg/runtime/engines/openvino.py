"""OpenVINO on the CPU."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from autoreg.errors import EngineError, ModelError
from autoreg.raster.background import count_cores
from autoreg.runtime.devices import import_library, in_a_line
from autoreg.runtime.engine import Images, Labels, Prediction, check_answer, check_images
from autoreg.runtime.idle import Idle
from autoreg.runtime.model_file import read_spec


class OpenVinoEngine:
    """Runs an ONNX model on the CPU; see ``autoreg.runtime.engine.Engine``.

    More threads than there are lanes may call it; then some of them wait.
    """

    def __init__(self, model: bytes, name: str, *, threads: int | None = None, lanes: int = 1) -> None:
        """Load a model from memory.

        Args:
            model: the bytes of an ``.onnx`` file.
            name: of the model in error messages.
            threads: as in ``load_engine``.
            lanes: as in ``load_engine``.

        Raises:
            ModelError: not an ONNX model that OpenVINO can load, or one without a valid ModelSpec.
            MissingDependencyError: openvino is not installed.
        """
        self.spec = read_spec(model, name)
        library = import_library("openvino")
        version = library.__version__.partition("-")[0]
        core = library.Core()
        in_bf16 = self.spec.precision == "bf16" and _has_bf16(core)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            # A stream is what a lane needs: one call at a time. The threads are those of all streams together.
            "NUM_STREAMS": lanes,
            "INFERENCE_NUM_THREADS": lanes * (threads or max(count_cores() // lanes, 1)),
            # Others read, write and train on the same cores.
            "ENABLE_CPU_PINNING": False,
            # Its default is bfloat16 where the processor has it; the precision is for the model file to say.
            "INFERENCE_PRECISION_HINT": "bf16" if in_bf16 else "f32",
        }
        try:
            compiled = core.compile_model(core.read_model(model), "CPU", settings)
            requests = [compiled.create_infer_request() for _ in range(lanes)]
            # The first call of this initialises a table, and lets other threads run meanwhile: if one calls it, too, as the
            # lanes do for their inputs, neither ever ends (seen in one of ten runs of two lanes, OpenVINO 2026.4).
            compiled.input("image").get_element_type().to_dtype()
        except Exception as error:  # the library raises RuntimeError and more
            raise ModelError(
                f"{name} is not an ONNX model that OpenVINO {version} can load ({in_a_line(error)}); export it again"
            ) from error
        self._idle: Idle[_Lane] = Idle(map(_Lane, requests))
        self.model_digest = hashlib.sha256(model).hexdigest()
        self.lanes = lanes
        self.device = f"OpenVINO {version} on the CPU{' in bfloat16' if in_bf16 else ''}"

    def label(self, images: Images) -> Labels:
        """Labels of ``images``."""
        with self._answered(images) as request:
            labels = np.array(request.get_tensor("labels").data)
        check_answer(images, self.spec, labels)
        return labels

    def predict(self, images: Images) -> Prediction:
        """Labels and logits of ``images``."""
        with self._answered(images) as request:
            labels, logits = (np.array(request.get_tensor(name).data) for name in ("labels", "logits"))
        check_answer(images, self.spec, labels, logits)
        return Prediction(labels, logits)

    @contextmanager
    def _answered(self, images: Images) -> Iterator[Any]:
        """A request that has run; what it holds is overwritten by the next one."""
        check_images(images, self.spec)
        with self._idle.take() as lane:
            try:
                lane.infer(images)
            except Exception as error:  # as above
                raise EngineError(f"OpenVINO failed on input of shape {images.shape}: {in_a_line(error)}") from error
            yield lane.request


class _Lane:
    """A request, and memory where images of bytes become float32, which is kept for the next call."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self._floats = np.empty(0, np.float32)

    def infer(self, images: Images) -> None:
        if images.dtype != np.float32:
            if self._floats.shape != images.shape:
                self._floats = np.empty(images.shape, np.float32)
            self._floats[...] = images
            images = self._floats
        self.request.infer({"image": images}, share_inputs=True, share_outputs=True)


def _has_bf16(core: Any) -> bool:
    """Whether the processor computes in bfloat16."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")

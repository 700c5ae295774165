"""ONNX Runtime on the CPU."""

import hashlib
import os
from pathlib import Path
from typing import Any, Self

import numpy as np

from autoreg.errors import EngineError, ModelError
from autoreg.optional import require
from autoreg.raster.background import count_cores
from autoreg.runtime.engine import Images, Labels, Prediction
from autoreg.spec import METADATA_KEY, ModelSpec

_MODEL_LIMIT_BYTES = 2 * 2**30  # of one protobuf message
_ERRORS_ONLY = 3


class OnnxRuntimeEngine:
    """Runs an ONNX model on the CPU; see ``autoreg.runtime.engine.Engine``."""

    def __init__(self, model: bytes, name: str, *, threads: int | None = None, lanes: int = 1) -> None:
        """Load a model from memory.

        Args:
            model: the bytes of an ``.onnx`` file.
            name: of the model in error messages.
            threads: as in ``load_engine``.
            lanes: as in ``load_engine``.

        Raises:
            ModelError: not an ONNX model, or one without a valid ModelSpec.
            MissingDependencyError: onnxruntime is not installed.
        """
        # Without this, releases from 1.29 on report to their vendor and leave a device id in the user's cache.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.enable_mem_pattern = False  # it plans for one shape, and each raster brings its own
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = threads or max(count_cores() // lanes, 1)
        # A thread that spins while it waits takes its core from the threads that read and write, and from other processes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's exceptions share no base but this one
            raise ModelError(f"{name} is not an ONNX model that ONNX Runtime {runtime.__version__} can load") from error
        self.spec = _read_spec(self._session, name)
        self.model_digest = hashlib.sha256(model).hexdigest()
        self.lanes = lanes
        self.device = f"ONNX Runtime {runtime.__version__} on the CPU"

    @classmethod
    def from_file(cls, path: Path, *, threads: int | None = None, lanes: int = 1) -> Self:
        """Load a model file; see ``autoreg.runtime.engine.load_engine``."""
        if not path.is_file():
            raise ModelError(f"there is no model {path}; make one with autoreg export")
        if path.stat().st_size > _MODEL_LIMIT_BYTES:
            raise ModelError(f"{path} is larger than the {_MODEL_LIMIT_BYTES} bytes that an ONNX file can have")
        return cls(path.read_bytes(), str(path), threads=threads, lanes=lanes)

    def label(self, images: Images) -> Labels:
        """Labels of ``images``."""
        return np.asarray(self._run(["labels"], images)[0])

    def predict(self, images: Images) -> Prediction:
        """Labels and logits of ``images``."""
        labels, logits = self._run(["labels", "logits"], images)
        return Prediction(labels, logits)

    def _run(self, outputs: list[str], images: Images) -> Any:
        try:
            return self._session.run(outputs, {"image": images})
        except Exception as error:  # as above
            reason = " ".join(str(error).split())
            raise EngineError(f"ONNX Runtime failed on input of shape {images.shape}: {reason}") from error


def _read_spec(session: Any, name: str) -> ModelSpec:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ModelError(f"{name} has no {METADATA_KEY} in its metadata, so it is no model of autoreg; use autoreg export")
    inputs = [node.name for node in session.get_inputs()]
    outputs = [node.name for node in session.get_outputs()]
    if inputs != ["image"] or outputs != ["labels", "logits"]:
        raise ModelError(
            f"{name} has inputs {inputs} and outputs {outputs}, expected ['image'] and ['labels', 'logits']; export it again"
        )
    spec = ModelSpec.from_json(text)
    declared = session.get_inputs()[0].shape
    if len(declared) != 4 or declared[1] != len(spec.bands):
        raise ModelError(
            f"{name} takes input of shape {declared}, but its spec says {len(spec.bands)} bands; export it again"
        )
    answered = session.get_outputs()[1].shape[1]
    if answered != spec.clusters:
        raise ModelError(f"{name} gives {answered} clusters, but its spec says {spec.clusters}; export it again")
    return spec

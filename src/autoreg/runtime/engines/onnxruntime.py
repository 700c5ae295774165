"""ONNX Runtime on the CPU, or on an NVIDIA GPU.

On a GPU, images of uint8 imagery are copied to it as they are, and memory there is reserved once. On the CPU neither gains
anything, and images may hold whatever float32 can.
"""

import hashlib
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Self

import numpy as np

from autoreg.errors import EngineError, ModelError
from autoreg.raster.background import count_cores
from autoreg.runtime.bound_session import BoundSession
from autoreg.runtime.devices import find_gpus, import_library, in_a_line
from autoreg.runtime.engine import Images, Labels, Prediction, check_answer, check_images
from autoreg.runtime.idle import Idle
from autoreg.runtime.images import to_uint8
from autoreg.runtime.model_file import read_model, read_spec
from autoreg.runtime.uint8_input import to_uint8_input
from autoreg.runtime.zero_point import to_unsigned

_CPU = "CPUExecutionProvider"
_CUDA_OPTIONS = {
    # Rounds the inputs of convolutions to 10 bits, which no model file has asked for.
    "use_tf32": "0",
    # The default measures at the first tile of each shape: then the choice, and rounding, depends on how busy the GPU was.
    "cudnn_conv_algo_search": "HEURISTIC",
}
_FATAL_ONLY = 4
_FOLDED_BYTES = 2**26
"""Of what is computed when a model is loaded, each: a few bytes of a file can ask for more than there is memory."""


class OnnxRuntimeEngine:
    """Runs an ONNX model; see ``autoreg.runtime.engine.Engine``.

    On a GPU (``CUDAExecutionProvider``) its tests passed on an H200 with onnxruntime-gpu 1.31; no machine that runs them
    regularly has one.

    Attributes:
        metadata: all entries of the model file, by name.
    """

    def __init__(
        self,
        model: bytes,
        name: str,
        *,
        provider: str = _CPU,
        threads: int | None = None,
        lanes: int = 1,
        gpu: int = 0,
        as_stored: bool = False,
    ) -> None:
        """Load a model from memory.

        Args:
            model: the bytes of an ``.onnx`` file.
            name: of the model in error messages.
            provider: what ONNX Runtime calls the device: that of one of ``autoreg.runtime.devices.DEVICES``.
            threads: as in ``load_engine``.
            lanes: as in ``load_engine``; more threads may call it, and then some of them wait.
            gpu: number of the GPU among those that CUDA shows, if the provider runs on one.
            as_stored: compute an INT8 model as it stands in the file, not as it is fast here; see ``runtime.zero_point``.

        Raises:
            ModelError: not an ONNX model, or one without a valid ModelSpec.
            MissingDependencyError: onnxruntime is not installed.
            EngineError: ONNX Runtime would run the model elsewhere.
        """
        self.spec = read_spec(model, name)
        runtime = import_library("onnxruntime")
        options = _options(runtime, threads or max(count_cores() // lanes, 1))
        if provider != _CPU:
            with redirect_stdout(StringIO()):  # it prints what it does not find
                runtime.preload_dlls()  # CUDA and cuDNN as pip installs them
            runtime.set_default_logger_severity(_FATAL_ONLY)  # it warns that no plugin has the GPU, and needs none
        self._takes_uint8 = provider != _CPU and self.spec.takes_uint8
        content = model if as_stored or provider != _CPU else to_unsigned(model)
        content = to_uint8_input(content) if self._takes_uint8 else content
        providers = [_CPU] if provider == _CPU else [(provider, {"device_id": str(gpu), **_CUDA_OPTIONS}), _CPU]
        # Calls that share a session on the CPU share its memory, and how much that grows to depends on how they meet.
        sessions = lanes if provider == _CPU else 1
        try:
            # Without fallback: else it goes on with the CPU after an error, and says so on stdout.
            session, *others = (
                runtime.InferenceSession(content, options, providers=providers, enable_fallback=0) for _ in range(sessions)
            )
        except Exception as error:  # the library's exceptions share no base but this one
            raise ModelError(
                f"{name} is not an ONNX model that ONNX Runtime {runtime.__version__} can load ({in_a_line(error)}); "
                f"export it again"
            ) from error
        if provider not in session.get_providers():
            raise EngineError(
                f"ONNX Runtime {runtime.__version__} cannot use its {provider} and would run {name} on the CPU, most often "
                f"because libraries of CUDA or cuDNN are missing or of another version; install them, or use the device cpu"
            )
        self._sessions: Idle[Any] = Idle(
            [session, *others]
            if provider == _CPU
            else [BoundSession(session, self.spec, device="cuda", gpu=gpu) for _ in range(lanes)]
        )
        self.metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
        self.model_digest = hashlib.sha256(model).hexdigest()
        self.lanes = lanes
        self.device = f"ONNX Runtime {runtime.__version__} on {'the CPU' if provider == _CPU else find_gpus()[gpu]}"

    @classmethod
    def from_file(cls, path: Path, *, threads: int | None = None, lanes: int = 1) -> Self:
        """Load a model file on the CPU; see ``autoreg.runtime.engine.load_engine``."""
        return cls(read_model(path), str(path), threads=threads, lanes=lanes)

    def label(self, images: Images) -> Labels:
        """Labels of ``images``."""
        labels = np.asarray(self._run(["labels"], images)[0])
        check_answer(images, self.spec, labels)
        return labels

    def predict(self, images: Images) -> Prediction:
        """Labels and logits of ``images``."""
        labels, logits = self._run(["labels", "logits"], images)
        check_answer(images, self.spec, labels, logits)
        return Prediction(labels, logits)

    def _run(self, outputs: list[str], images: Images) -> Any:
        check_images(images, self.spec)
        taken = to_uint8(images) if self._takes_uint8 else images.astype(np.float32, copy=False)
        try:
            with self._sessions.take() as session:
                return session.run(outputs, {"image": taken})
        except Exception as error:  # as above
            raise EngineError(f"ONNX Runtime failed on input of shape {images.shape}: {in_a_line(error)}") from error


def _options(runtime: Any, threads: int) -> Any:
    """Of a session whose calls take so many threads each."""
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY  # it prints what it raises, too
    options.enable_mem_pattern = False  # it plans for one shape, and each raster brings its own
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads
    options.use_deterministic_compute = True
    # A thread that spins while it waits takes its core from the threads that read and write, and from other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(_FOLDED_BYTES))
    return options

"""ONNX Runtime's sessions with memory that is reserved once, on the device: no call waits for it to be found anew."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.runtime.devices import import_library
from autoreg.runtime.engine import Images
from autoreg.spec import ModelSpec


class BoundSession:
    """Calls a session as ``InferenceSession.run`` does, for one caller at a time; several may share a session.

    Only what is asked for is copied back. The memory that the last call needed is kept for the next call of that shape:
    nearly all tiles of a raster have one.
    """

    def __init__(self, session: Any, spec: ModelSpec, *, device: str, gpu: int = 0) -> None:
        """Take a session.

        Args:
            session: an ``InferenceSession``.
            spec: of its model.
            device: where its memory is, as ONNX Runtime calls it: ``cuda`` or ``cpu``.
            gpu: number of the GPU.
        """
        self._session, self._spec, self._device = session, spec, (device, gpu)
        self._last: tuple[tuple[int, ...], np.dtype[Any]] | None = None
        self._values: dict[str, Any] = {}
        self._bindings: dict[tuple[str, ...], Any] = {}

    def run(self, outputs: Sequence[str], feed: Mapping[str, Images]) -> list[NDArray[Any]]:
        """The outputs of these names for the ``image`` of ``feed``, which is of the type that the session takes."""
        names, images = tuple(outputs), feed["image"]
        if self._last != (images.shape, images.dtype):
            self._bindings.clear()
            self._values.clear()  # before more is reserved
            self._last = images.shape, images.dtype
        if names not in self._bindings:
            self._bindings[names] = self._bind(names, images)
        self._values["image"].update_inplace(np.ascontiguousarray(images))
        self._session.run_with_iobinding(self._bindings[names])
        # On the CPU, what numpy() gives is the memory that is bound.
        return [np.array(self._values[name].numpy()) for name in names]

    def _bind(self, names: tuple[str, ...], images: Images) -> Any:
        """A binding of the image and of the outputs of these names to memory, which other bindings share."""
        count, _, height, width = images.shape
        stride = self._spec.stride
        needed = {
            "image": (images.shape, images.dtype.type),
            "labels": ((count, height, width), np.uint8),
            "logits": ((count, self._spec.clusters, height // stride, width // stride), np.float32),
        }
        binding = self._session.io_binding()
        for name in ("image", *names):
            if name not in self._values:
                value = import_library("onnxruntime").OrtValue
                self._values[name] = value.ortvalue_from_shape_and_type(*needed[name], *self._device)
            bind = binding.bind_ortvalue_input if name == "image" else binding.bind_ortvalue_output
            bind(name, self._values[name])
        return binding

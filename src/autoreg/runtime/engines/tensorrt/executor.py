"""TensorRT on an NVIDIA GPU."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import EngineError
from autoreg.runtime.engine import Images, Labels, Prediction, check_answer, check_images
from autoreg.runtime.engines.tensorrt.cuda import MIB, MORE_MEMORY, Gpu
from autoreg.runtime.engines.tensorrt.engine_file import EngineFile
from autoreg.runtime.engines.tensorrt.library import Library
from autoreg.runtime.engines.tensorrt.slot import Loaded, Slot, Tensors


class TensorRtEngine:
    """Runs a compiled model on one GPU; see ``autoreg.runtime.engine.Engine``.

    Each lane has a slot for itself, so while one call computes, the images of the next are on their way to the GPU, and the
    labels of the one before on their way back. More threads than there are lanes may call it; then some of them wait.

    Attributes:
        tile_shape: height and width of the images that the engine was built for; smaller ones, and those that are larger by
            up to a stride, are slower.
        batch_size: images that are computed at once; more are computed batch by batch.
        lane_bytes: memory of the GPU that each lane takes: what TensorRT computes in, and the buffers.
        device_bytes: memory of the GPU that the engine takes until it is closed: its weights, counted as the size of its
            file, and the lanes. What CUDA itself takes is not in it.
    """

    def __init__(self, plan: bytes, described: EngineFile, library: Library, *, gpu: int = 0, lanes: int = 2) -> None:
        """Load an engine.

        Args:
            plan: the bytes of an ``.engine`` file. They are code: who loads them trusts who has built them.
            described: what the file beside it says of it.
            library: the one that built it.
            gpu: number of the GPU, in the order of CUDA, from 0.
            lanes: as in ``load_engine``; it takes two for copies and computation to overlap.

        Raises:
            MissingDependencyError: cuda-bindings is not installed.
            EngineError: there is no such GPU, or not enough memory in it, or the library does not load the engine.
        """
        self.spec = described.spec
        self.model_digest = described.model_digest
        self.tile_shape = described.tile_shape
        self.batch_size = described.batch_size
        self.lanes = lanes
        self._tensors = Tensors(described)
        self._gpu = Gpu(gpu)
        self._free = weakref.finalize(self, self._gpu.close)
        self.device = f"{library} on {self._gpu.name}{' with TF32' if described.tf32 else ''}"
        try:
            with self._gpu.current():
                loaded = Loaded(plan, library, self._gpu)
                loaded.check_types(self._tensors.types)
                self.lane_bytes = loaded.scratch_bytes + sum(self._tensors.most_bytes.values())
                self._check_memory()
                self._slots = _Slots([Slot(self._gpu, loaded, self._tensors) for _ in range(lanes)])
        except BaseException:
            self._free()
            raise
        self.device_bytes = len(plan) + lanes * self.lane_bytes

    def label(self, images: Images) -> Labels:
        """Labels of ``images``."""
        (labels,) = self._run(images, ("labels",))
        check_answer(images, self.spec, labels)
        return labels

    def predict(self, images: Images) -> Prediction:
        """Labels and logits of ``images``."""
        labels, logits = self._run(images, ("labels", "logits"))
        check_answer(images, self.spec, labels, logits)
        return Prediction(labels, logits)

    def close(self) -> None:
        """Free the memory of the GPU once the calls under way are done; later ones are refused.

        An engine that nobody holds any more is closed by Python.
        """
        self._slots.close()
        self._free()

    def _run(self, images: Images, outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        check_images(images, self.spec)
        self._tensors.check_size(images)
        pixels = self._tensors.as_input(images)
        batches = [pixels[start : start + self.batch_size] for start in range(0, len(pixels), self.batch_size)]
        with self._slots.take() as slot, self._gpu.current():
            answers = [slot.run(batch, outputs) for batch in batches]
        return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*answers, strict=True)]

    def _check_memory(self) -> None:
        needed, free = self.lanes * self.lane_bytes, self._gpu.free_bytes()
        if needed > free:
            raise EngineError(
                f"the engine needs {needed / MIB:.1f} MiB of {self._gpu.name} besides its weights, "
                f"{self.lane_bytes / MIB:.1f} for each of {self.lanes} lanes, and {free / MIB:.1f} are free; "
                f"use fewer lanes, {MORE_MEMORY}"
            )


class _Slots:
    """Slots that no call is using. The one that was used last is taken first: it is set up already."""

    def __init__(self, slots: list[Slot]) -> None:
        self._all = len(slots)
        self._idle = slots
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def take(self) -> Iterator[Slot]:
        """A slot for the caller alone, as soon as there is one.

        Raises:
            EngineError: the engine is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._idle or self._closed)
            if self._closed:
                raise EngineError("the engine has been closed; load it again")
            slot = self._idle.pop()
        try:
            yield slot
        finally:
            with self._changed:
                self._idle.append(slot)
                self._changed.notify_all()

    def close(self) -> None:
        """Give out no more, and wait until all are back."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._idle) == self._all)

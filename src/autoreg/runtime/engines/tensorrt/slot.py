"""An engine on a GPU: what all calls share, and the slots, of which each call takes one."""

import logging
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import EngineError
from autoreg.runtime.engine import Images
from autoreg.runtime.engines.tensorrt.cuda import MIB, MORE_MEMORY, Gpu, Graph, Stream
from autoreg.runtime.engines.tensorrt.engine_file import EngineFile
from autoreg.runtime.engines.tensorrt.library import RTX, Library
from autoreg.runtime.images import to_uint8

_log = logging.getLogger("autoreg")

_AGAIN = "build the engine again with autoreg build --overwrite"
_OUT_OF_MEMORY = re.compile("out ?of ?memory", re.IGNORECASE)
"""How TensorRT says so: by "Cuda Runtime (out of memory)" and "Error Code 2: OutOfMemory"."""
_TILE, _OTHER = 0, 1
"""Optimisation profiles: of the one shape that an engine was built for, and of what is smaller or off the stride grid."""

Shapes = dict[str, tuple[int, ...]]
"""Of ``image``, ``labels`` and ``logits``."""


class Tensors:
    """What goes into an engine and what comes out.

    Attributes:
        types: of ``image``, ``labels`` and ``logits``.
        most_bytes: that each of them can have.
    """

    def __init__(self, described: EngineFile) -> None:
        self._spec, self._tile, self._batch = described.spec, described.tile_shape, described.batch_size
        # Where a part of a raster begins off the stride grid, tiles are larger by a stride.
        self._most = self._tile[0] + self._spec.stride, self._tile[1] + self._spec.stride
        image = np.dtype(np.uint8 if described.uint8_input else np.float32)
        self.types = {"image": image, "labels": np.dtype(np.uint8), "logits": np.dtype(np.float32)}
        largest = self._shapes(self._batch, *self._most)
        self.most_bytes = {name: math.prod(shape) * self.types[name].itemsize for name, shape in largest.items()}

    def _shapes(self, count: int, height: int, width: int) -> Shapes:
        stride = self._spec.stride
        return {
            "image": (count, len(self._spec.bands), height, width),
            "labels": (count, height, width),
            "logits": (count, self._spec.clusters, height // stride, width // stride),
        }

    def plan_run(self, images: Images) -> tuple[int, Shapes]:
        """Which profile takes a batch, and the shapes that it is computed in: tiles always in whole batches."""
        count, _, height, width = images.shape
        if (height, width) == self._tile:
            return _TILE, self._shapes(self._batch, height, width)
        return _OTHER, self._shapes(count, height, width)

    def check_size(self, images: Images) -> None:
        """Refuse images that are larger than what the engine was built for.

        Raises:
            EngineError: they are.
        """
        if images.shape[2] > self._most[0] or images.shape[3] > self._most[1]:
            raise EngineError(
                f"the engine got images of {images.shape[2]} x {images.shape[3]} px and was built for tiles of "
                f"{self._tile[0]} x {self._tile[1]} px, at most {self._most[0]} x {self._most[1]} px; "
                f"cut the raster into these, or build the engine for larger ones"
            )

    def as_input(self, images: Images) -> NDArray[Any]:
        """Images as the engine can take them: one of float32 takes all, one of uint8 only what fits.

        Raises:
            EngineError: the engine takes uint8, and there are other values.
        """
        return to_uint8(images) if self.types["image"] == np.uint8 else images


class Loaded:
    """What the library made of the bytes of an engine: weights on a GPU, and what to do with them.

    It is freed with the GPU, and held nowhere else, not even by an error that is on its way.
    """

    def __init__(self, plan: bytes, library: Library, gpu: Gpu) -> None:
        """Have an engine loaded.

        Raises:
            EngineError: the library does not load it, or there is not enough memory.
        """
        self._library, self._gpu = library, gpu
        trt = library.trt
        library.take_errors()  # of something before, such as a way to compute that did not fit when the engine was built
        self._engine = trt.Runtime(library.logger).deserialize_cuda_engine(plan)
        self.require(self._engine is not None, f"load the engine of {len(plan) / MIB:.1f} MiB")
        gpu.on_close(self._drop)

    @property
    def scratch_bytes(self) -> int:
        """Memory of the GPU that each context takes."""
        return int(self._engine.device_memory_size_v2)

    def check_types(self, types: Mapping[str, np.dtype[Any]]) -> None:
        """Make sure that the engine takes and gives what it should.

        Raises:
            EngineError: it has other tensors, or some of another type.
        """
        trt = self._library.trt
        known = {np.dtype(np.uint8): trt.DataType.UINT8, np.dtype(np.float32): trt.DataType.FLOAT}
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        found = {name: self._engine.get_tensor_dtype(name) for name in names}
        expected = {name: known[kind] for name, kind in types.items()}
        if found != expected:
            raise EngineError(f"the engine has {_list(found)}, expected {_list(expected)}; {_AGAIN}")

    def make_context(self) -> Any:
        """What keeps the state of one call at a time; None if there is not enough memory."""
        trt = self._library.trt
        if self._library.flavour is not RTX:
            return self._engine.create_execution_context()
        # By itself, it answers the first calls of a shape with other kernels, while it compiles those for the shape: then a
        # label could depend on the moment, and a graph would keep what was only to bridge it.
        runtime_config = self._engine.create_runtime_config()
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        runtime_config.dynamic_shapes_kernel_specialization_strategy = eager
        return self._engine.create_execution_context(runtime_config)

    def require(self, done: bool, what: str) -> None:
        """Raise what the library says if it could not do something.

        Raises:
            EngineError: ``done`` is False.
        """
        if done:
            return
        said = self._library.take_errors()
        advice = _AGAIN
        if _OUT_OF_MEMORY.search(said):
            free = self._gpu.free_bytes() / MIB
            advice = f"the {free:.1f} MiB of memory that are free on {self._gpu.name} do not suffice: {MORE_MEMORY}"
        raise EngineError(f"{self._library} could not {what}: {said}; {advice}")

    def _drop(self) -> None:
        self._engine = None


class Slot:
    """A stream, TensorRT's context, and buffers on both sides: what one call at a time needs for itself.

    In each shape, TensorRT sets itself up in the first run. After that, the upload, the computation and the download of the
    labels of tiles are a CUDA graph, launched as one.
    """

    def __init__(self, gpu: Gpu, loaded: Loaded, tensors: Tensors) -> None:
        """Allocate all that any call needs; ``gpu`` frees it.

        Raises:
            EngineError: there is not enough memory.
        """
        self._require = loaded.require
        self._tensors = tensors
        self._stream = Stream(gpu)
        self._pinned = {name: gpu.allocate_pinned(size) for name, size in tensors.most_bytes.items()}
        self._addresses = {name: gpu.allocate(size) for name, size in tensors.most_bytes.items()}
        self._arrays: dict[str, NDArray[Any]] = {}  # the pinned buffers, in the shapes that the context is set up for
        self._ready = False
        self._graph: Graph | None = None
        self._recordable = True
        gpu.on_close(self._close)
        self._context = loaded.make_context()
        self._require(self._context is not None, f"make a context of {loaded.scratch_bytes / MIB:.1f} MiB to run in")

    def run(self, images: NDArray[Any], outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        """What the engine says of a batch or less, in arrays that are the caller's."""
        # Whatever moment Ctrl-C comes at, the next call finds a context that is set up for a shape or for none, and what was
        # under way is done before anything that it asks for.
        profile = self._prepare(images)
        self._launch(record=profile == _TILE)
        if "logits" in outputs:
            self._stream.download(self._addresses["logits"], self._arrays["logits"])
        self._stream.wait()
        self._ready = True
        return [self._arrays[name][: len(images)].copy() for name in outputs]

    def _prepare(self, images: NDArray[Any]) -> int:
        """Set the context up for the shape of a batch, and put the batch where the GPU takes it from."""
        profile, shapes = self._tensors.plan_run(images)
        if not self._arrays or self._arrays["image"].shape != shapes["image"]:
            self._forget()
            self._set_shapes(profile, shapes)
            self._arrays = {name: self._shaped(name, shape) for name, shape in shapes.items()}
        image = self._arrays["image"]
        image[: len(images)] = images
        image[len(images) :] = images[-1]
        return profile

    def _set_shapes(self, profile: int, shapes: Shapes) -> None:
        context = self._context
        if context.active_optimization_profile != profile:
            try:
                context.set_optimization_profile_async(profile, self._stream.handle)
            except RuntimeError:  # where others answer False
                self._require(False, f"switch to profile {profile}")
        for name, address in self._addresses.items():  # nothing says that they outlast a switch of profiles
            self._require(context.set_tensor_address(name, address), f"take the address of {name}")
        self._require(context.set_input_shape("image", shapes["image"]), f"take images of shape {shapes['image']}")
        for name in ("labels", "logits"):
            shape = tuple(context.get_tensor_shape(name))
            if shape != shapes[name]:
                raise EngineError(
                    f"the engine gives {name} of shape {shape}, expected {shapes[name]}: its spec is not its own; "
                    f"export the model and build it again"
                )

    def _shaped(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        kind = self._tensors.types[name]
        return self._pinned[name][: math.prod(shape) * kind.itemsize].view(kind).reshape(shape)

    def _launch(self, *, record: bool) -> None:
        if record and self._ready and self._recordable and self._graph is None:
            self._record()
        if self._graph is None:
            self._enqueue()
        else:
            self._stream.launch(self._graph)

    def _record(self) -> None:
        try:
            self._graph = self._stream.record(self._enqueue)
        except EngineError as error:  # such as a layer that asks for memory while it runs
            self._recordable = False
            _log.warning("the engine cannot be run as a CUDA graph, so it runs step by step: %s", str(error))

    def _enqueue(self) -> None:
        image, labels = self._arrays["image"], self._arrays["labels"]
        self._stream.upload(image, self._addresses["image"])
        self._require(self._context.execute_async_v3(self._stream.handle), f"run images of shape {image.shape}")
        self._stream.download(self._addresses["labels"], labels)

    def _forget(self) -> None:
        """Wait for what is under way, and let the next call set the context up anew."""
        graph, self._graph = self._graph, None
        self._arrays, self._ready = {}, False
        try:
            self._stream.wait()
        finally:
            if graph is not None:
                graph.close()

    def _close(self) -> None:
        with suppress(EngineError):
            self._forget()
        self._context = None


def _list(tensors: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} of {kind.name}" for name, kind in sorted(tensors.items()))

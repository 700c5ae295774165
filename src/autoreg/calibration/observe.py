"""Run a model tile by tile and see how large its activations are, in memory that does not grow with the tiles."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from autoreg.calibration.histogram import Histogram
from autoreg.calibration.samples import Samples
from autoreg.errors import ModelError
from autoreg.raster.background import count_cores
from autoreg.runtime.devices import import_library

GROUP_BYTES = 256 * 2**20
"""Activations that are looked at together are at most this large, if none is larger alone."""

_ERRORS_ONLY = 3
_IMAGE = "image"

Advance = Callable[[], None]
"""Called after each tile of each pass."""


def observe(
    model: onnx.ModelProto, names: Sequence[str], samples: Samples, advance: Advance = lambda: None
) -> dict[str, Histogram]:
    """Histograms of activations over all tiles: one pass for the largest values, one to count.

    Args:
        model: in float32.
        names: of the activations.
        samples: the tiles.
        advance: see ``Advance``.

    Raises:
        ModelError: an activation is not finite.
        RasterError: a raster cannot be read.
    """
    look = _Look(model, names, samples)
    maxima = dict.fromkeys(names, 0.0)
    for image, _ in samples:
        for name, values in look(image):
            largest = float(np.abs(values).max())
            maxima[name] = max(maxima[name], largest)
            if not np.isfinite(largest):
                raise ModelError(
                    f"the float32 model computes values that are not finite ({name}), so there is no range to quantise; "
                    f"train it again, or leave out the raster that makes them"
                )
        advance()
    histograms = {name: Histogram(maximum) for name, maximum in maxima.items()}
    for image, _ in samples:
        for name, values in look(image):
            histograms[name].add(values)
        advance()
    return histograms


class _Look:
    """Gives the activations of one tile, group by group."""

    def __init__(self, model: onnx.ModelProto, names: Sequence[str], samples: Samples) -> None:
        height, width = (max(window[axis] for _, window in samples.tiles) for axis in (2, 3))
        # What goes in is no output of a session.
        self._with_image = _IMAGE in names
        inside = [name for name in names if name != _IMAGE]
        sizes = _sizes(model, inside, height, width)
        self._groups = [(group, _session(model, group)) for group in _grouped(inside, sizes, GROUP_BYTES)]

    def __call__(self, image: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        if self._with_image:
            yield _IMAGE, image
        for group, session in self._groups:
            found = dict(zip(group, session.run(None, {_IMAGE: image}), strict=True))
            for name in group:
                yield name, found.pop(name)


def _session(model: onnx.ModelProto, names: Sequence[str]) -> Any:
    """A session whose outputs are the activations."""
    runtime = import_library("onnxruntime")
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.output[:]
    changed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = runtime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.enable_mem_pattern = False
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = count_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return runtime.InferenceSession(changed.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _sizes(model: onnx.ModelProto, names: Sequence[str], height: int, width: int) -> dict[str, int]:
    """Bytes of each activation for one tile of ``height`` x ``width`` px; those whose shape is not known are left out."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    shape = fixed.graph.input[0].type.tensor_type.shape
    for axis, size in ((0, 1), (2, height), (3, width)):
        shape.dim[axis].dim_value = size
    for output in fixed.graph.output:  # their axes have names, which would not fit
        output.type.tensor_type.ClearField("shape")
    known: dict[str, int] = {}
    for value in onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if value.name in names and all(dim.WhichOneof("value") == "dim_value" for dim in dims):
            known[value.name] = 4 * int(np.prod([dim.dim_value for dim in dims]))
    return known


def _grouped(names: Sequence[str], sizes: dict[str, int], limit: int) -> list[list[str]]:
    """The names in groups of at most ``limit`` bytes; what is larger, or of unknown size, is alone."""
    groups: list[list[str]] = []
    held = limit
    for name in names:
        size = sizes.get(name, limit)
        if held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups

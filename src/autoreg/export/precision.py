"""Change the type that a model computes in. The type belongs to the file, never to whoever runs it."""

import warnings
from typing import Any

import onnx

from autoreg.optional import require

_NORMALISATION = {"Sub", "Div", "Mul", "Add"}


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a float32 model that computes in float16; its inputs and outputs stay float32.

    The normalisation stays in float32, because 16-bit imagery exceeds the range of float16, and so do the upsampling and
    what follows it.
    """
    float16 = require("onnxconverter_common.float16")
    with warnings.catch_warnings():
        # It warns of every weight below the smallest float16, which becomes that number; parity judges the result.
        warnings.simplefilter("ignore", UserWarning)
        converted: Any = float16.convert_float_to_float16(
            model, keep_io_types=True, node_block_list=_normalisation_nodes(model.graph)
        )
    assert isinstance(converted, onnx.ModelProto)
    return converted


def _normalisation_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes between the input and the first layer."""
    names: list[str] = []
    value = graph.input[0].name
    while True:
        readers = [node for node in graph.node if value in node.input]
        if len(readers) != 1 or readers[0].op_type not in _NORMALISATION:
            return names
        names.append(readers[0].name)
        value = readers[0].output[0]

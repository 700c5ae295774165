"""Insert QuantizeLinear and DequantizeLinear, in the one layout that TensorRT, OpenVINO and ONNX Runtime all take.

Activations are signed with zero point 0 and one scale, weights signed with a scale for each output channel, and biases stay
in float32. Nothing stands between a convolution or an addition and its ReLU. The normalisation, attention, and all that
follows the logits stay in float32.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from autoreg.calibration.layers import Layer
from autoreg.calibration.ranges import LEVELS
from autoreg.errors import ModelError
from autoreg.runtime.zero_point import ANY_SIGN, NOT_NEGATIVE

_LEAST_SCALE = float(np.finfo(np.float32).tiny)


def quantize_model(model: onnx.ModelProto, layers: Sequence[Layer], ranges: Mapping[str, float]) -> onnx.ModelProto:
    """A copy of a float32 model in which ``layers`` compute in INT8.

    Args:
        model: as ``autoreg export`` writes it.
        layers: from ``find_layers``.
        ranges: of each of their activations, the largest absolute value that is not clipped.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    activations = dict.fromkeys(name for layer in layers for name in layer.activations)
    places = {place for layer in layers for place in layer.places}
    weights = {item.name: item for item in graph.initializer}
    not_negative = _not_negative(model.graph)
    after = {
        name: _quantize_activation(name, ranges[name], NOT_NEGATIVE if name in not_negative else ANY_SIGN, graph)
        for name in activations
    }
    nodes: list[onnx.NodeProto] = [node for value in graph.input for node in after.get(value.name, ())]
    done: set[str] = set()
    for node in graph.node:
        for place, name in enumerate(node.input):
            if (node.output[0], place) not in places:
                continue
            if name in weights and name not in done:
                nodes.append(_quantize_weight(weights[name], graph))
                done.add(name)
            node.input[place] = _dequantized(name)
        nodes += [node, *(added for name in node.output for added in after.get(name, ()))]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    for name in (ANY_SIGN, NOT_NEGATIVE):
        graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), name))
    used = {name for node in graph.node for name in node.input}
    kept = [onnx.TensorProto.FromString(item.SerializeToString()) for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return result


def quantize_weights(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights (outputs, inputs, height, width) as INT8 numbers, and the scale of each output channel (outputs,)."""
    scales = _scales(np.abs(weights).max(axis=(1, 2, 3)))
    numbers = np.rint(weights / scales[:, None, None, None]).clip(-LEVELS, LEVELS)
    return numbers.astype(np.int8), scales


def _scales(ranges: NDArray[np.floating]) -> NDArray[np.float32]:
    """Width of a step for each range; any will do where there is nothing but zeros."""
    scales = np.asarray(ranges, np.float32) / np.float32(LEVELS)
    return np.where(scales >= _LEAST_SCALE, scales, np.float32(1))


def _dequantized(name: str) -> str:
    return f"{name}.dequantized"


def _not_negative(graph: onnx.GraphProto) -> set[str]:
    """Activations that are 0 or more, whatever goes in: of ReLUs, and what is pooled, padded with 0 and added of these."""
    found: set[str] = set()
    for node in graph.node:
        if (
            node.op_type == "Relu"
            or (
                (node.op_type == "MaxPool" or (node.op_type == "Pad" and not any(node.input[2:3])))
                and node.input[0] in found
            )
            or (node.op_type == "Add" and found >= set(node.input))
        ):
            found.add(node.output[0])
    return found


def _quantize_activation(
    name: str, limit: float, zero_point: str, graph: onnx.GraphProto
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    scale, numbers = f"{name}.scale", f"{name}.quantized"
    graph.initializer.append(numpy_helper.from_array(_scales(np.array(limit)), scale))
    return (
        helper.make_node("QuantizeLinear", [name, scale, zero_point], [numbers]),
        helper.make_node("DequantizeLinear", [numbers, scale, zero_point], [_dequantized(name)]),
    )


def _quantize_weight(weight: onnx.TensorProto, graph: onnx.GraphProto) -> onnx.NodeProto:
    numbers, scales = quantize_weights(numpy_helper.to_array(weight))
    names = [f"{weight.name}.quantized", f"{weight.name}.scale"]
    graph.initializer.append(numpy_helper.from_array(numbers, names[0]))
    graph.initializer.append(numpy_helper.from_array(scales, names[1]))
    return helper.make_node("DequantizeLinear", names, [_dequantized(weight.name)], axis=0)


def check_layout(model: onnx.ModelProto) -> None:
    """Make sure that a model has the layout that is described above.

    Raises:
        ModelError: it has another.
    """
    if problem := _layout_problem(model.graph):
        raise ModelError(f"the INT8 model would not run everywhere: {problem}; please report this")


def _layout_problem(graph: onnx.GraphProto) -> str | None:
    constants = {item.name: item for item in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers: defaultdict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for place, name in enumerate(node.input):
            readers[name].append((node, place))
    for node in graph.node:
        kind = node.op_type
        if kind == "QuantizeLinear":
            problem = _activation_problem(node, constants, readers)
        elif kind == "DequantizeLinear":
            problem = _dequantized_problem(node, constants, makers, readers)
        elif "QLinear" in kind or "Integer" in kind:
            problem = f"it has a node {kind}"
        elif kind == "Conv":
            sources = [makers[name].op_type if name in makers else "" for name in node.input[:2]]
            mixed = (sources[0] == "DequantizeLinear") != (sources[1] == "DequantizeLinear")
            problem = f"of {node.output[0]}, either the input or the weights alone are quantised" if mixed else None
        else:
            problem = None
        if problem:
            return problem
    return None


def _activation_problem(
    node: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    readers: Mapping[str, Sequence[tuple[onnx.NodeProto, int]]],
) -> str | None:
    name, output = node.input[0], node.output[0]
    scale = constants.get(node.input[1])
    if scale is None or scale.data_type != onnx.TensorProto.FLOAT or list(scale.dims):
        return f"the scale of {name} is not one float32 number"
    if not 0 < float(numpy_helper.to_array(scale)) < np.inf:
        return f"the scale of {name} is not positive"
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero is None or zero.data_type != onnx.TensorProto.INT8 or numpy_helper.to_array(zero).any():
        return f"the zero point of {name} is not an INT8 0"
    following = readers[output]
    if len(following) != 1 or following[0][0].op_type != "DequantizeLinear":
        return f"{name} is quantised, and not dequantised at once"
    if list(following[0][0].input[1:]) != list(node.input[1:]):
        return f"{name} is dequantised by another scale"
    return None


def _dequantized_problem(
    node: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    makers: Mapping[str, onnx.NodeProto],
    readers: Mapping[str, Sequence[tuple[onnx.NodeProto, int]]],
) -> str | None:
    name = node.input[0]
    following = [(reader.op_type, place) for reader, place in readers[node.output[0]]]
    weight = constants.get(name)
    if weight is None:
        if name not in makers or makers[name].op_type != "QuantizeLinear":
            return f"{name} is dequantised, and was not quantised"
        allowed = {("Conv", 0), ("Add", 0), ("Add", 1)}
        wrong = [f"input {place} of {kind}" for kind, place in following if (kind, place) not in allowed]
        return f"{name} is {wrong[0]}" if wrong else None
    scale = constants[node.input[1]]
    if weight.data_type != onnx.TensorProto.INT8 or scale.data_type != onnx.TensorProto.FLOAT:
        return f"{name} is not INT8 with float32 scales"
    if list(scale.dims) != [weight.dims[0]] or [item.i for item in node.attribute if item.name == "axis"] != [0]:
        return f"{name} does not have a scale for each output channel"
    if len(node.input) > 2:
        return f"{name} has zero points"
    return None if set(following) == {("Conv", 1)} else f"{name} is not the weights of a convolution"

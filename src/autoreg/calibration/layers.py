"""The layers of a model that can compute in INT8: its convolutions, and the skip connections that are added to them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx


@dataclass(frozen=True)
class Layer:
    """What is quantised together or stays in float together.

    A convolution is quantised with its weights, what goes in, and, where an addition alone takes its output, what comes out:
    then the addition gets INT8 numbers. A skip connection is the other input of the addition.

    Attributes:
        name: of the weights, without what the names of all have in common; of a skip connection with ``.skip``.
        places: inputs of nodes that are quantised: the name of the node's output, and the place of the input.
        activations: names of these inputs, without weights.
    """

    name: str
    places: tuple[tuple[str, int], ...]
    activations: tuple[str, ...]


def find_layers(graph: onnx.GraphProto) -> tuple[Layer, ...]:
    """The layers of a float32 graph that the logits, its last output, depend on, in the order in which they are computed."""
    weights = {item.name for item in graph.initializer if item.data_type == onnx.TensorProto.FLOAT and len(item.dims) == 4}
    constants = {item.name for item in graph.initializer}
    readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    needed = {graph.output[-1].name}
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed.update(node.input)
    convs = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in weights and node.output[0] in needed]
    added = {conv.output[0]: _addition(conv, readers, constants) for conv in convs}
    branches = {place for place, _ in filter(None, added.values())}
    layers: dict[str, Layer] = {}
    for conv in convs:
        name = conv.input[1].removeprefix("network.").removesuffix(".weight")
        if name in layers:  # another convolution with the same weights
            name = conv.output[0]
        places, activations = [(conv.output[0], 0), (conv.output[0], 1)], [conv.input[0]]
        addition = added[conv.output[0]]
        if addition:
            place, node = addition
            places.append(place)
            activations.append(node.input[place[1]])
        layers[name] = Layer(name, tuple(places), tuple(activations))
        if addition and (skip := (node.output[0], 1 - place[1])) not in branches:
            layers[f"{name}.skip"] = Layer(f"{name}.skip", (skip,), (node.input[skip[1]],))
    return tuple(layers.values())


def _addition(
    conv: onnx.NodeProto, readers: Mapping[str, Sequence[onnx.NodeProto]], constants: set[str]
) -> tuple[tuple[str, int], onnx.NodeProto] | None:
    """The addition of two activations that alone takes what a convolution, or its ReLU, gives, and where it takes it."""
    output = conv.output[0]
    following = readers[output]
    if len(following) == 1 and following[0].op_type == "Relu":
        output = following[0].output[0]
        following = readers[output]
    if len(following) != 1 or following[0].op_type != "Add" or constants & set(following[0].input):
        return None
    node = following[0]
    return (node.output[0], list(node.input).index(output)), node

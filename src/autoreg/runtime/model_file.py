"""What a model file says of itself, read from its bytes before a library takes them in.

Inference libraries believe what a file declares: they reserve memory for it, open the files that it names, and unroll what
it nests. So a file that was not made by autoreg is refused here, on the level of the protobuf encoding, for which neither
the ``onnx`` package nor an inference library is needed. What is refused is what our models never have: weights in other
files, weights that are declared larger than they are, graphs inside of nodes (loops), functions, and sparse weights.
"""

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autoreg.errors import ModelError
from autoreg.runtime.protobuf import (
    MANY,
    BrokenMessageError,
    Reader,
    TooManyFieldsError,
    Value,
    as_bytes,
    as_integers,
    as_text,
)
from autoreg.spec import METADATA_KEY, ModelSpec

_LIMIT_BYTES = 2 * 2**30
"""Of a protobuf message."""
_LIMIT_FIELDS = 2**20
"""Of all messages in a file: a large network has some ten thousand, and two bytes can declare one that takes a hundred."""
_LIMIT_SPEC_BYTES = 4 * 2**20
_LIMIT_SIDE = 2**31
_LIMIT_AXES = 8
_LIMIT_VALUES = 2**28
_LIMIT_ATTRIBUTE = 2**16
"""Of paddings, strides, dilations, since loops and buffers of the libraries are as long; no receptive field is as large."""

_LEAST_INPUTS = (
    dict.fromkeys(("Add", "Conv", "ConvTranspose", "DequantizeLinear", "Div", "Expand", "Gather", "Gemm", "MatMul"), 2)
    | dict.fromkeys(("Mul", "Pow", "QuantizeLinear", "Reshape", "Sub", "Tile", "Unsqueeze"), 2)
    | dict.fromkeys(("InstanceNormalization", "Slice", "Where"), 3)
    | dict.fromkeys(("ArgMax", "Cast", "Concat", "Flatten", "MaxPool", "Relu", "Resize", "Shape", "Softmax", "Transpose"), 1)
    | {"BatchNormalization": 5}
)
"""How many inputs operators need: OpenVINO looks at some without asking whether they are there."""

_SIZE_INPUTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (1,),
    "Resize": (2, 3),
    "Tile": (1,),
    "Upsample": (1,),
}
"""Inputs, of operators that make much of little, that say how much: a constant there is looked at."""

_FLOAT, _UINT8 = 1, 2
_SIZE_TYPES: dict[int, np.dtype[Any]] = {_FLOAT: np.dtype("<f4"), 6: np.dtype("<i4"), 7: np.dtype("<i8")}
_BITS = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
}
"""Of a value of each of ONNX's types, by its number in TensorProto.DataType."""
_VALUES_PER_BYTE = 4
"""At most, where a tensor's values are not raw: four of two bits."""


class _NotAllowedError(Exception):
    """What is wrong with a file, as the end of a sentence that begins with its name."""


class _Declared(NamedTuple):
    """An input or output: its type, and its shape, None where an axis is dynamic."""

    name: str
    kind: int
    shape: tuple[int | None, ...]


class _Node(NamedTuple):
    """A node of the graph; the names of values that it takes and gives."""

    operator: str
    inputs: list[str]
    outputs: list[str]


class _Graph(NamedTuple):
    """What is in a graph.

    Attributes:
        constants: by the name of each initializer and constant, the product of its values if they may be sides of something.
    """

    inputs: list[_Declared]
    outputs: list[_Declared]
    nodes: list[_Node]
    constants: dict[str, float]


def read_model(path: Path) -> bytes:
    """The bytes of a model file.

    Raises:
        ModelError: there is none, it cannot be read, or it is larger than an ONNX file can be.
    """
    if not path.is_file():
        raise ModelError(f"there is no model {path}; make one with autoreg export")
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            raise ModelError(f"{path} is larger than the {_LIMIT_BYTES} bytes that an ONNX file can have; export it again")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"the model {path} cannot be read: {error.strerror}") from error


def read_spec(model: bytes, name: str) -> ModelSpec:
    """The spec in a model, once the file has been found to hold what the spec promises, and nothing dangerous to load.

    Memory does not depend on what the file declares, and time is bounded.

    Args:
        model: the bytes of an ``.onnx`` file.
        name: of the model in error messages.

    Raises:
        ModelError: not an ONNX model, one that autoreg does not write, or one without a valid ModelSpec.
    """
    try:
        return _Reader().read(memoryview(model), name)
    except BrokenMessageError as error:
        raise ModelError(f"{name} is not an ONNX model, or was cut off; export it again") from error
    except TooManyFieldsError as error:
        raise ModelError(f"{name} has more than {_LIMIT_FIELDS} fields, far more than a model of autoreg") from error
    except _NotAllowedError as error:
        raise ModelError(f"{name} {error}; export it again") from error


def graph_digest(model: bytes) -> str:
    """SHA-256, hexadecimal, of what a model computes: of its graph and the operators that it is written in.

    It stays when the metadata change, as when classes get names: then what was compiled from the graph holds.

    Args:
        model: the bytes of an ``.onnx`` file.

    Raises:
        ModelError: not an ONNX model.
    """
    digest = hashlib.sha256()
    try:
        for number, _, part in Reader(_LIMIT_FIELDS).parts(memoryview(model)):
            if number in (7, 8):  # graph, opset_import
                digest.update(part)
    except (BrokenMessageError, TooManyFieldsError) as error:
        raise ModelError("the model is not an ONNX model, or was cut off; export it again") from error
    return digest.hexdigest()


class _Reader:
    """Reads one file. The names and numbers of the fields are those of ``onnx.proto``."""

    def __init__(self) -> None:
        self._fields = Reader(_LIMIT_FIELDS).fields

    def read(self, model: Value, name: str) -> ModelSpec:
        graphs: list[memoryview] = []
        specs: list[str] = []
        for number, value in self._fields(model):
            if number == 7:  # graph
                graphs.append(as_bytes(value))
            elif number == 14:  # metadata_props
                key, text = self._entry(value)
                if key == METADATA_KEY:
                    specs.append(text)
            elif number == 25:
                raise _NotAllowedError("defines functions of its own, which a model of autoreg never does")
        if len(graphs) != 1:
            raise _NotAllowedError(f"is not an ONNX model: it has {len(graphs)} graphs, expected one")
        if not specs:
            raise ModelError(
                f"{name} has no {METADATA_KEY} in its metadata, so it is no model of autoreg; use autoreg export"
            )
        if len(specs) > 1:
            raise _NotAllowedError(f"has {len(specs)} entries {METADATA_KEY} in its metadata, expected one")
        graph = self._graph(graphs[0])
        _check_names(graph)
        _check_order(graph)
        _check_sizes(graph)
        spec = ModelSpec.from_json(specs[0])
        _check_shapes(graph, spec)
        return spec

    def _entry(self, value: Value) -> tuple[str, str]:
        """Key and text of an entry of the metadata."""
        key = text = ""
        for number, part in self._fields(value):
            if len(as_bytes(part)) > _LIMIT_SPEC_BYTES:
                raise _NotAllowedError(f"has an entry of more than {_LIMIT_SPEC_BYTES} bytes in its metadata")
            if number == 1:
                key = as_text(part)
            elif number == 2:
                text = as_text(part)
        return key, text

    def _graph(self, message: Value) -> _Graph:
        """The graph, after a look at each thing that is in it."""
        graph = _Graph([], [], [], {})
        for number, value in self._fields(message):
            if number == 1:
                graph.nodes.append(self._node(value, graph.constants))
            elif number == 5:  # initializer
                self._check_tensor(value, graph.constants)
            elif number == 11:
                graph.inputs.append(self._declared(value))
            elif number == 12:
                graph.outputs.append(self._declared(value))
            elif number == 13:  # value_info
                self._declared(value)
            elif number == 15:
                raise _NotAllowedError("has sparse weights, which a model of autoreg never has")
        return graph

    def _node(self, node: Value, constants: dict[str, float]) -> _Node:
        """A node; if it is a constant that may be the sides of something, their product is put into ``constants``."""
        operator = ""
        inputs: list[str] = []
        outputs: list[str] = []
        numbers: list[int] = []
        held: dict[str, float] = {}
        for number, value in self._fields(node):
            if number == 1:
                inputs.append(as_text(value))
            elif number == 2:
                outputs.append(as_text(value))
            elif number == 4:  # op_type
                operator = as_text(value)
            elif number == 5:
                numbers += self._check_attribute(value, held)
        if operator == "Constant":
            constants.update((name, max(held.values(), default=0)) for name in outputs)
        elif max(map(abs, numbers), default=0) > _LIMIT_ATTRIBUTE or len(numbers) > MANY:
            raise _NotAllowedError(
                f"has an attribute of {max(numbers, key=abs)} in a node {operator[:40]!r}, no network needs that"
            )
        return _Node(operator, inputs, outputs)

    def _check_attribute(self, attribute: Value, sizes: dict[str, float]) -> list[int]:
        """The integers of an attribute; ``sizes`` as for a tensor."""
        numbers: list[int] = []
        tensors = 0
        for number, value in self._fields(attribute):
            if number in (3, 8):  # i, ints
                numbers += as_integers(value)
            elif number in (5, 10):  # t, tensors
                tensors += number == 5
                self._check_tensor(value, sizes)
            elif number in (6, 11):  # g, graphs
                raise _NotAllowedError("has a graph inside of a node (a loop or branch), which a model of autoreg never has")
            elif number in (22, 23):
                raise _NotAllowedError("has sparse weights, which a model of autoreg never has")
        if tensors > 1:  # a reader would merge them into one that has not been looked at
            raise _NotAllowedError("is not an ONNX model: an attribute has two values")
        return numbers

    def _check_tensor(self, tensor: Value, sizes: dict[str, float]) -> None:
        """Refuse weights that are elsewhere, or that are declared larger than they are.

        Its name is put into ``sizes``, with the product of its values if they may be the sides of something, else 0.
        """
        shape: list[int] = []
        name, kind, held = "", 0, 0
        raw: memoryview | None = None
        numbers: memoryview | None = None
        for number, value in self._fields(tensor):
            if number == 1:  # dims
                shape += as_integers(value)
            elif number == 2 and isinstance(value, int):
                kind = value
            elif number == 8:
                name = as_text(value)
            elif number == 13 or (number == 14 and value != 0):  # external_data, data_location
                raise _NotAllowedError("keeps weights in another file, expected all of them inside")
            elif number == 9:
                raw = as_bytes(value)
            elif number in (4, 5, 6, 7, 10, 11):  # values of some type
                numbers = None if isinstance(value, int) else value
                held += 8 if isinstance(value, int) else len(value) + 1
        if len(shape) <= _LIMIT_AXES and all(side >= 0 for side in shape):
            count = math.prod(shape)
            if count <= held * _VALUES_PER_BYTE if raw is None else len(raw) == (count * _BITS.get(kind, 0) + 7) // 8:
                size = _product(kind, raw, numbers) if count <= 2 * _LIMIT_AXES else 0.0
                sizes[name] = max(sizes.get(name, 0), size)
                return
        sides = " x ".join(map(str, shape[:_LIMIT_AXES])) or "one value"
        raise _NotAllowedError(
            f"declares weights {name[:40]!r} of {sides}, but holds {held if raw is None else len(raw)} bytes for them"
        )

    def _declared(self, value: Value) -> _Declared:
        """A ValueInfoProto: only tensors are read, as there are no others in our models."""
        name, kind = "", 0
        shape: list[int | None] = []
        for number, part in self._fields(value):
            if number == 1:
                name = as_text(part)
            elif number == 2:  # type
                for _, of_tensor in self._fields(part):
                    for detail, inner in self._fields(of_tensor):
                        if detail == 1 and isinstance(inner, int):
                            kind = inner
                        elif detail == 2:  # shape
                            shape += [self._side(side) for axis, side in self._fields(inner) if axis == 1]
        longest = max((side or 0 for side in shape), default=0)
        if longest >= _LIMIT_SIDE:  # negative ones, too
            raise _NotAllowedError(f"declares {name[:40]!r} with an axis of {longest} values")
        return _Declared(name, kind, tuple(shape))

    def _side(self, dimension: Value) -> int | None:
        values = [value for number, value in self._fields(dimension) if number == 1 and isinstance(value, int)]
        return values[-1] if values else None


def _product(kind: int, raw: memoryview | None, numbers: memoryview | None) -> float:
    """Product of a few numbers, those below 1 left out; 0 if they have a type that no sides have."""
    if kind not in _SIZE_TYPES:
        return 0.0
    if raw is None and kind == _FLOAT:
        raw = numbers
    if raw is None:
        values = [] if numbers is None else as_integers(numbers)
    else:
        width = _SIZE_TYPES[kind].itemsize
        values = np.frombuffer(raw[: len(raw) // width * width], _SIZE_TYPES[kind]).tolist()
    return math.prod(max(1.0, value) for value in values)  # of NaN and 1, it takes 1


def _check_order(graph: _Graph) -> None:
    """Refuse a graph in which a node takes what is not there yet: in a circle, libraries may go round for ever."""
    known = {"", *graph.constants, *(item.name for item in graph.inputs)}
    for node in graph.nodes:
        least = _LEAST_INPUTS.get(node.operator, 0)
        if len(node.inputs) < least or "" in node.inputs[:least]:
            raise _NotAllowedError(f"has a node {node.operator} of {len(node.inputs)} inputs, expected at least {least}")
        for name in node.inputs:
            if name not in known:
                raise _NotAllowedError(
                    f"has a node {node.operator[:40]!r} that takes {name[:40]!r}, which no node before it gives"
                )
        known.update(node.outputs)


def _check_sizes(graph: _Graph) -> None:
    """Refuse nodes that are to make more than there may be memory for."""
    for node in graph.nodes:
        for place in _SIZE_INPUTS.get(node.operator, ()):
            size = graph.constants.get(node.inputs[place], 0) if place < len(node.inputs) else 0
            if size > _LIMIT_VALUES:
                raise _NotAllowedError(f"asks for {size:.3g} values at once in a node {node.operator}")


def _check_names(graph: _Graph) -> None:
    names = [item.name for item in graph.inputs], [item.name for item in graph.outputs]
    if names != (["image"], ["labels", "logits"]):
        raise _NotAllowedError(
            f"has inputs {names[0]!s:.200} and outputs {names[1]!s:.200}, expected ['image'] and ['labels', 'logits']"
        )


def _check_shapes(graph: _Graph, spec: ModelSpec) -> None:
    (image,), (labels, logits) = graph.inputs, graph.outputs
    kinds = (image.kind, labels.kind, logits.kind)
    if kinds != (_FLOAT, _UINT8, _FLOAT):
        raise _NotAllowedError(f"has input and outputs of the types {kinds}, expected float32, uint8 and float32 (1, 2, 1)")
    if len(image.shape) != 4 or image.shape[1] != len(spec.bands):
        raise _NotAllowedError(f"takes input of shape {image.shape}, but its spec says {len(spec.bands)} bands")
    if len(logits.shape) != 4 or logits.shape[1] != spec.clusters:
        answered = logits.shape[1] if len(logits.shape) > 1 else 0
        raise _NotAllowedError(f"gives {answered} clusters, but its spec says {spec.clusters}")

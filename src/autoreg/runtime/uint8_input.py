"""Models that take images of bytes as they are: a quarter of what else would be copied to a GPU.

A model file takes float32, whatever its imagery, as every library does. For engines that gain by it, the graph of a model of
uint8 imagery begins with one more node, which converts: all that follows, and so what the model says, is the same. As in
``zero_point``, this changes a few bytes of the file, without the ``onnx`` package.
"""

from collections.abc import Callable, Mapping

from autoreg.errors import ModelError
from autoreg.runtime.model_file import read_spec
from autoreg.runtime.protobuf import Reader, Value, as_bytes, encode_field

_IMAGE, _CONVERTED = b"image", b"autoreg.image"
_FLOAT, _UINT8 = 1, 2
"""In TensorProto.DataType."""
_INT_ATTRIBUTE = 2
"""In AttributeProto.AttributeType."""
_LIMIT_FIELDS = 2**20
"""Of all messages that are gone through, which are fewer than ``read_spec`` does."""

_Changes = Mapping[int, Callable[[Value], bytes]]
"""By the number of a field, from its value to what is to be there instead."""


def to_uint8_input(model: bytes) -> bytes:
    """The model with an input ``image`` of uint8 instead of float32; its spec, which speaks of float32, is as it was.

    Args:
        model: the bytes of an ``.onnx`` file.

    Raises:
        ModelError: not a model of autoreg as it is in a file, or one whose images may be other than uint8.
    """
    spec = read_spec(model, "the model")
    if not spec.takes_uint8:
        raise ModelError(
            f"the model takes {spec.dtype} imagery of normalisation {spec.normalisation}, expected uint8 and global: only "
            f"such images can be given to it as uint8; give it float32"
        )
    fields = Reader(_LIMIT_FIELDS)

    def changed(message: Value, changes: _Changes) -> bytes:
        return b"".join(
            changes[number](value) if number in changes else part for number, value, part in fields.parts(message)
        )

    def within(number: int, changes: _Changes) -> _Changes:
        return {number: lambda message: encode_field(number, changed(message, changes))}

    node = within(1, {1: _renamed})  # GraphProto.node, NodeProto.input
    # GraphProto.input, ValueInfoProto.type, TypeProto.tensor_type, TypeProto.Tensor.elem_type
    image = within(11, within(2, within(1, {1: lambda _: encode_field(1, _UINT8)})))

    def graph(message: Value) -> bytes:
        return encode_field(7, _cast() + changed(message, {**node, **image}))

    return changed(memoryview(model), {7: graph})


def _renamed(name: Value) -> bytes:
    """An input of a node: what is converted, if it was the image."""
    return encode_field(1, _CONVERTED if as_bytes(name) == _IMAGE else bytes(as_bytes(name)))


def _cast() -> bytes:
    """The node that converts, as a field of a graph: its input, output, name, operator and attribute, the type."""
    to_float = encode_field(1, b"to") + encode_field(3, _FLOAT) + encode_field(20, _INT_ATTRIBUTE)
    parts = [_IMAGE, _CONVERTED, _CONVERTED, b"Cast", to_float]
    return encode_field(1, b"".join(encode_field(number, part) for number, part in enumerate(parts, 1)))

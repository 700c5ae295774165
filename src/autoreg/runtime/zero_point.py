"""The zero points of INT8 models, in the two forms that engines want.

TensorRT takes signed activations with zero point 0 alone. ONNX Runtime on x86 fuses a convolution and its ReLU into an INT8
one only if activations are unsigned and the smallest number is 0, where the ReLU cuts. So a model that is loaded there gets
other zero points: 128 where values may be negative, which holds the same numbers; and 0 where none is, which holds the same
ones, and also those up to twice the range, which the file itself clips. All activations of our INT8 models share two
initializers, so this takes a few bytes of the file.
"""

ANY_SIGN = "autoreg.zero_point"
"""Initializer, a scalar, of the activations that may be negative."""
NOT_NEGATIVE = "autoreg.zero_point.not_negative"
"""Likewise, of those that cannot be, whatever the input."""

_INT8, _UINT8 = 3, 2


def _serialised(name: str, data_type: int, value: int) -> bytes:
    """An initializer in the file: a TensorProto with its data type (field 2), name (field 8) and raw data (field 9)."""
    return bytes([0x10, data_type, 0x42, len(name)]) + name.encode() + bytes([0x4A, 1, value])


def to_unsigned(model: bytes) -> bytes:
    """The model with unsigned activations; as it is if it has no INT8 ones.

    Args:
        model: the bytes of an ``.onnx`` file.
    """
    for name, zero_point in ((ANY_SIGN, 128), (NOT_NEGATIVE, 0)):
        model = model.replace(_serialised(name, _INT8, 0), _serialised(name, _UINT8, zero_point))
    return model

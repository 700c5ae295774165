"""Protobuf messages, field by field, for who has to look at one before a library parses it, or to change a few bytes of it.

What two readers could take in two ways is an error: no library writes it.
"""

from collections.abc import Iterator

Value = int | memoryview
"""Of a field: an int, or the bytes of a string, a message, packed numbers or a float."""

MANY = 64
"""More numbers than this are not unpacked."""

_VARINT, _LENGTH = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}


class BrokenMessageError(Exception):
    """These bytes are no message: they break off, or are not encoded as messages are."""


class TooManyFieldsError(Exception):
    """There are more fields than a reader was told to expect."""


class Reader:
    """Reads messages without a copy, up to a number of fields of all of them together."""

    def __init__(self, most_fields: int) -> None:
        self._left = most_fields

    def fields(self, message: Value) -> Iterator[tuple[int, Value]]:
        """Number and value of each field of a message, in the order of the file.

        Raises:
            BrokenMessageError: it is no message.
            TooManyFieldsError: the reader has read enough.
        """
        for number, value, _ in self.parts(message):
            yield number, value

    def parts(self, message: Value) -> Iterator[tuple[int, Value, memoryview]]:
        """As ``fields``, and with each field all of its bytes, as they stand in the message."""
        message = as_bytes(message)
        position, end = 0, len(message)
        while position < end:
            start = position
            self._left -= 1
            if self._left < 0:
                raise TooManyFieldsError
            tag, position = _varint(message, position)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 2**29:
                raise BrokenMessageError
            if wire == _VARINT:
                value, position = _varint(message, position)
                yield number, value, message[start:position]
                continue
            size = _FIXED_BYTES.get(wire, -1)
            if wire == _LENGTH:
                size, position = _varint(message, position)
            if not 0 <= size <= end - position:
                raise BrokenMessageError
            inner, position = message[position : position + size], position + size
            yield number, inner, message[start:position]


def encode_field(number: int, value: int | bytes) -> bytes:
    """The bytes of a field: of a number that is not negative, or of a string or a message."""
    if isinstance(value, int):
        return _encode_varint(number << 3 | _VARINT) + _encode_varint(value)
    return _encode_varint(number << 3 | _LENGTH) + _encode_varint(len(value)) + value


def as_bytes(value: Value) -> memoryview:
    """The bytes of a field that is no number."""
    if isinstance(value, int):
        raise BrokenMessageError
    return value


def as_text(value: Value) -> str:
    """The text of a field."""
    try:
        return bytes(as_bytes(value)).decode()
    except UnicodeDecodeError as error:
        raise BrokenMessageError from error


def as_integers(value: Value) -> list[int]:
    """The signed numbers of a field, one or packed; of more than ``MANY`` the first of them, one too many."""
    if isinstance(value, int):
        return [_signed(value)]
    numbers: list[int] = []
    position = 0
    while position < len(value) and len(numbers) <= MANY:
        number, position = _varint(value, position)
        numbers.append(_signed(number))
    return numbers


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """An unsigned number of up to 64 bits, and where the next one begins."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= 2**64:
                break
            return value, position
    raise BrokenMessageError


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value

"""Put compressed blocks into a Cloud-Optimized GeoTIFF: directories first, then the overviews, then the full resolution.

GDAL's own driver compresses every block a second time, on the whole raster at the end of the work: three times slower than
the rest of the writing. Here a block is compressed once, when its labels are known, and copied into place in the end. What
the file says of itself (place, colours, nodata, tags) is taken from a file without pixels that GDAL has written.

Layout: TIFF 6.0, BigTIFF where a file reaches 4 GiB; directories in GDAL's "COG layout", and blocks with their size before
them and their last four bytes behind, which lets readers fetch a block and its length in one request.
"""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoreg.spec import NODATA_LABEL

BLOCK_PX = 512
"""Side of the blocks."""

_LEVEL = 1  # of zlib: labels compress so well that more effort gains little
_CLASSIC_LIMIT = 2**32 - 2**20
_COPY_BYTES = 2**20
_STRUCTURE = (
    b"LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
    b"BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n "  # the space is room for YES
)

_SUBFILE, _WIDTH, _LENGTH, _OFFSETS, _BYTE_COUNTS = 254, 256, 257, 324, 325
_OF_THE_WHOLE = {33550, 33922, 34264, 34735, 34736, 34737, 42112, 50844}
"""Tags of place and metadata: overviews do without them."""
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}
_LONG, _LONG8 = 4, 16

Block = NDArray[np.uint8]
"""(BLOCK_PX, BLOCK_PX, bands); nodata past the raster's edges."""


class Tag(NamedTuple):
    """An entry of a TIFF directory: its type, how many values, and their bytes, little-endian."""

    kind: int
    values: int
    content: bytes


@dataclass
class Level:
    """The compressed blocks of one resolution, in a file of their own; blocks that are never put are nodata.

    Attributes:
        height, width: in pixels.
        bands: how many.
        file: where the blocks are.
        offsets, sizes: where in the file the block of a row and column is, and how many bytes it has: 0 if it is nodata.
    """

    height: int
    width: int
    bands: int
    file: IO[bytes]
    offsets: NDArray[np.uint64] = field(init=False)
    sizes: NDArray[np.uint32] = field(init=False)

    def __post_init__(self) -> None:
        shape = (-(-self.height // BLOCK_PX), -(-self.width // BLOCK_PX))
        self.offsets, self.sizes = np.zeros(shape, np.uint64), np.zeros(shape, np.uint32)

    def put(self, row: int, col: int, content: bytes | None) -> None:
        """Add the block at (row, col), counted in blocks, as ``compress`` gave it."""
        if content is not None:
            self.offsets[row, col], self.sizes[row, col] = self.file.seek(0, os.SEEK_END), len(content)
            self.file.write(content)

    def get(self, row: int, col: int) -> bytes | None:
        """The block at (row, col) as it was put; None for nodata."""
        self.file.seek(int(self.offsets[row, col]))
        return self.file.read(int(self.sizes[row, col])) or None

    @property
    def bytes_in_cog(self) -> int:
        """Size of the blocks with what stands before and after each."""
        return int(self.sizes.sum(dtype=np.uint64)) + 8 * int(np.count_nonzero(self.sizes))


def compress(block: Block) -> bytes | None:
    """A block as it is stored, or None if it is nothing but nodata."""
    return zlib.compress(block.tobytes(), _LEVEL) if (block != NODATA_LABEL).any() else None


def expand(content: bytes, bands: int) -> Block:
    """The block of which ``compress`` made ``content``.

    Raises:
        ValueError: it is not a block.
    """
    size = BLOCK_PX * BLOCK_PX * bands
    try:
        block = zlib.decompressobj().decompress(content, size)
    except zlib.error as error:
        raise ValueError(f"a block does not decompress: {error}") from error
    return np.frombuffer(block, np.uint8).reshape(BLOCK_PX, BLOCK_PX, bands)


def write_cog(target: Path, template: bytes, levels: Sequence[Level]) -> None:
    """Write a map and its overviews.

    Args:
        target: of the map.
        template: a classic TIFF of the same size and blocks, compressed with deflate, that has no pixels.
        levels: the full resolution, and the overviews from large to small.

    Raises:
        OSError: ``target`` cannot be written.
    """
    with target.open("wb") as file:
        _write_file(file, _read_tags(template), levels)


def _read_tags(template: bytes) -> dict[int, Tag]:
    """The first directory of a classic little-endian TIFF."""
    mark, version, start = struct.unpack_from("<2sHI", template)
    if (mark, version) != (b"II", 42):
        raise ValueError(f"the template begins with {template[:4]!r}, expected a classic little-endian TIFF")
    (count,) = struct.unpack_from("<H", template, start)
    tags = {}
    for index in range(count):
        place = start + 2 + 12 * index
        tag, kind, values = struct.unpack_from("<HHI", template, place)
        size = values * _SIZES[kind]
        at = place + 8 if size <= 4 else struct.unpack_from("<I", template, place + 8)[0]
        tags[tag] = Tag(kind, values, template[at : at + size])
    return tags


def _write_file(file: IO[bytes], tags: dict[int, Tag], levels: Sequence[Level]) -> None:
    ghost = b"GDAL_STRUCTURAL_METADATA_SIZE=%06d bytes\n" % len(_STRUCTURE) + _STRUCTURE
    data = sum(level.bytes_in_cog for level in levels)
    tables = sum(16 * level.sizes.size + 4096 for level in levels) + sum(len(tag.content) for tag in tags.values()) * len(
        levels
    )
    big = data + tables > _CLASSIC_LIMIT
    first = (16 if big else 8) + len(ghost)
    first += first % 2
    # The offsets of blocks are known when the length of the directories is, and that does not depend on their values.
    start = first + sum(len(part) for part in _directories(tags, levels, [0] * len(levels), first, big=big))
    starts = [start + sum(other.bytes_in_cog for other in levels[index + 1 :]) for index in range(len(levels))]
    header = struct.pack("<2sHHHQ", b"II", 43, 8, 0, first) if big else struct.pack("<2sHI", b"II", 42, first)
    file.write((header + ghost).ljust(first, b"\0"))
    for part in _directories(tags, levels, starts, first, big=big):
        file.write(part)
    for level in reversed(levels):
        for row, col in np.ndindex(*level.sizes.shape):
            if content := level.get(row, col):
                file.write(struct.pack("<I", len(content)) + content + content[-4:])


def _directories(
    tags: dict[int, Tag], levels: Sequence[Level], starts: list[int], first: int, *, big: bool
) -> Iterator[bytes]:
    """One directory a level, with the values that do not fit into it right behind it."""
    for index, (level, start) in enumerate(zip(levels, starts, strict=True)):
        own = tags if index == 0 else {tag: value for tag, value in tags.items() if tag not in _OF_THE_WHOLE}
        stored = level.sizes.ravel() > 0
        lengths = np.where(stored, level.sizes.ravel().astype(np.uint64) + np.uint64(8), np.uint64(0))
        offsets = np.where(stored, np.uint64(start + 4) + lengths.cumsum(dtype=np.uint64) - lengths, np.uint64(0))
        own = own | {
            _SUBFILE: _number(int(index > 0)),
            _WIDTH: _number(level.width),
            _LENGTH: _number(level.height),
            _OFFSETS: Tag(_LONG8 if big else _LONG, offsets.size, offsets.astype("<u8" if big else "<u4").tobytes()),
            _BYTE_COUNTS: Tag(_LONG, level.sizes.size, level.sizes.astype("<u4").tobytes()),
        }
        directory = _directory(own, first, last=index + 1 == len(levels), big=big)
        first += len(directory)
        yield directory


def _number(value: int) -> Tag:
    return Tag(_LONG, 1, struct.pack("<I", value))


def _directory(tags: dict[int, Tag], place: int, *, last: bool, big: bool) -> bytes:
    """A directory at ``place``; unless it is the ``last``, it points to what follows it."""
    count, entry, word = ("<Q", "<HHQ", "<Q") if big else ("<H", "<HHI", "<I")
    inline = struct.calcsize(word)
    size = struct.calcsize(count) + len(tags) * (struct.calcsize(entry) + inline) + inline
    entries, values = [struct.pack(count, len(tags))], b""
    for tag, (kind, number, content) in sorted(tags.items()):
        if len(content) <= inline:
            field_bytes = content.ljust(inline, b"\0")
        else:
            field_bytes = struct.pack(word, place + size + len(values))
            values += content + b"\0" * (len(content) % 2)
        entries.append(struct.pack(entry, tag, kind, number) + field_bytes)
    whole = size + len(values)
    values += b"\0" * (whole % 2)
    following = 0 if last else place + whole + whole % 2
    return b"".join(entries) + struct.pack(word, following) + values

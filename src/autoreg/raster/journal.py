"""The finished blocks of maps that are not finished: what a killed process leaves, and another one goes on from.

A journal is a hidden file beside the map. Blocks are appended as they are compressed, each record with its checksum, so
whatever moment the process is killed at, the records before that moment hold. It begins with a digest of the job (input,
model, settings), and only the same job goes on from it. While a process writes it, it is locked, so that two processes
cannot write one map.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import OutputError, RasterError
from autoreg.raster.cog import BLOCK_PX, Block, Level, expand

_MAGIC = b"autoreg journal 1\n"
_PLACE, _SIZE, _CHECKSUM = struct.Struct("<IId"), struct.Struct("<I"), struct.Struct("<I")
_ZLIB_SLACK = 2**16


class Journal:
    """The blocks of the maps of one raster, in a file. Use it from one thread at a time.

    Attributes:
        levels: the full resolution of each map.
    """

    def __init__(self, file: IO[bytes], levels: Sequence[Level]) -> None:
        """Begin after what ``file`` holds.

        Args:
            file: unbuffered, open for reading and writing, at its end; the levels read from it, too.
            levels: all of one height and width.
        """
        self._file = file
        self.levels = tuple(levels)
        self._done: NDArray[np.bool_] = np.zeros(levels[0].sizes.shape, np.bool_)

    def put(self, row: int, col: int, contents: Sequence[bytes | None], dependence: float) -> None:
        """Add the block at (row, col), counted in blocks, of each map.

        Args:
            row: of the block.
            col: of the block.
            contents: as ``cog.compress`` gave them.
            dependence: how many of its labels depend on the tiling.

        Raises:
            OSError: it cannot be written; the journal is as it was.
        """
        sizes = [len(content or b"") for content in contents]
        head = _PLACE.pack(row, col, dependence) + b"".join(map(_SIZE.pack, sizes))
        payload = b"".join(content or b"" for content in contents)
        start = self._file.seek(0, os.SEEK_END)
        try:
            _write(self._file, head + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(head))) + payload)
        except BaseException:
            with suppress(OSError):
                self._file.truncate(start)
            raise
        self._note(row, col, sizes, start + len(head) + _CHECKSUM.size)

    def has(self, row: int, col: int) -> bool:
        """Whether the block at (row, col) is there."""
        return bool(self._done[row, col])

    @property
    def is_empty(self) -> bool:
        """Whether no block is there."""
        return not self._done.any()

    def replay(self, take: Callable[[int, int, list[Block | None], float], None]) -> None:
        """Find the blocks that an earlier process has put, and call ``take`` with each; cut off what is not whole.

        The position of the file is that of the first record.
        """
        while True:
            start = self._file.tell()
            found = self._read_record()
            if found is None:
                break
            row, col, sizes, blocks, dependence = found
            self._note(row, col, sizes, self._file.tell() - sum(sizes))
            take(row, col, blocks, dependence)
        self._file.truncate(start)
        self._file.seek(start)

    def _note(self, row: int, col: int, sizes: Sequence[int], start: int) -> None:
        for level, size in zip(self.levels, sizes, strict=True):
            level.offsets[row, col], level.sizes[row, col] = start, size
            start += size
        self._done[row, col] = True

    def _read_record(self) -> tuple[int, int, list[int], list[Block | None], float] | None:
        """The next record, or None where there is no further whole one."""
        size = _PLACE.size + _SIZE.size * len(self.levels) + _CHECKSUM.size
        head = _read(self._file, size)
        if len(head) < size:
            return None
        row, col, dependence = _PLACE.unpack_from(head)
        sizes = [_SIZE.unpack_from(head, _PLACE.size + _SIZE.size * index)[0] for index in range(len(self.levels))]
        shape = self._done.shape
        limits = (BLOCK_PX * BLOCK_PX * level.bands + _ZLIB_SLACK for level in self.levels)
        if row >= shape[0] or col >= shape[1] or self._done[row, col] or any(map(int.__gt__, sizes, limits)):
            return None
        payload = _read(self._file, sum(sizes))
        (checksum,) = _CHECKSUM.unpack_from(head, size - _CHECKSUM.size)
        if len(payload) < sum(sizes) or zlib.crc32(payload, zlib.crc32(head[: -_CHECKSUM.size])) != checksum:
            return None
        blocks: list[Block | None] = []
        start = 0
        for level, length in zip(self.levels, sizes, strict=True):
            content = payload[start : start + length]
            try:
                blocks.append(expand(content, level.bands) if content else None)
            except ValueError:
                return None
            start += length
        return row, col, sizes, blocks, dependence


def journal_path(path: Path) -> Path:
    """Where the journal of the map ``path`` is while it is not finished."""
    return path.with_name(f".{path.name}.journal")


def remove_journal(path: Path, digest: bytes) -> None:
    """Remove what is left of a job whose maps are whole: its process was killed after the last of them had appeared.

    Args:
        path: of the map.
        digest: of the job; the journal of another one stays, and so does one that is being written.
    """
    place, head = journal_path(path), _MAGIC + digest
    with suppress(OSError, OutputError):
        if place.exists():
            with _locked(path, place) as file:
                if _read(file, len(head)) == head:
                    place.unlink()


@contextmanager
def open_journal(
    path: Path, digest: bytes, shapes: Sequence[tuple[int, int, int]], *, overwrite: bool, resume: bool
) -> Iterator[tuple[Journal, bool]]:
    """Open the journal of the map ``path``, and keep all others from it.

    It is removed when the block ends without error, if it holds nothing, and if the input is to blame: to go on from it
    would end the same way. Whatever else ends the block leaves it.

    Args:
        path: of the map; the journal is beside it.
        digest: of the job, 32 bytes.
        shapes: height, width and bands of each map.
        overwrite: throw away what an earlier process left, unless it is to be resumed.
        resume: go on from what an earlier process of the same job left.

    Yields:
        The journal, and whether there is something in its file to ``replay``.

    Raises:
        OutputError: another process is writing the map, or there is an unfinished one that is not to be thrown away.
    """
    place = journal_path(path)
    with _locked(path, place) as file:
        begun = _begun(path, file, digest, overwrite=overwrite, resume=resume)
        if not begun:
            file.truncate(0)
            file.seek(0)
            _write(file, _MAGIC + digest)
        journal = Journal(file, [Level(*shape, file) for shape in shapes])
        keep = False
        try:
            yield journal, begun
        except RasterError:
            raise
        except BaseException:
            keep = not journal.is_empty
            raise
        finally:
            if not keep:
                place.unlink(missing_ok=True)


def _begun(path: Path, file: IO[bytes], digest: bytes, *, overwrite: bool, resume: bool) -> bool:
    """Whether ``file`` holds blocks of the same job that are to be kept; leaves its position at the first of them."""
    head = _MAGIC + digest
    start = _read(file, len(head))
    same = resume and start == head
    if os.fstat(file.fileno()).st_size > len(head) and not (same or overwrite):
        if resume:
            raise OutputError(
                f"{path} was begun with another input, model or setting; use --overwrite to begin it anew, or give the same"
            )
        raise OutputError(f"{path} was begun and not finished; use --resume to go on, or --overwrite to begin it anew")
    return same


@contextmanager
def _locked(path: Path, place: Path) -> Iterator[IO[bytes]]:
    """The file at ``place``, open and locked."""
    while True:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"{path} is being written by another process; wait for it, or give another folder with -o"
                ) from error
            except OSError:  # some network disks know no locks
                pass
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), place.stat()):
                    yield file
                    return
        # Another process has finished with the file, and removed it, since it was opened.


def _write(file: IO[bytes], content: bytes) -> None:
    """Write all of ``content``: an unbuffered file may take less at a time."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _read(file: IO[bytes], size: int) -> bytes:
    """``size`` bytes, or fewer at the end of the file."""
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)

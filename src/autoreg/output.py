"""A file appears whole or not at all: written beside its target under another name, then renamed."""

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autoreg.errors import OutputError

_TOKEN_BYTES = 4


def check_output(path: Path, *, overwrite: bool) -> None:
    """Make sure, before any work starts, that ``path`` can be written.

    Raises:
        OutputError: it exists and ``overwrite`` is not set, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder, expected the name of a file to write")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; use --overwrite to replace it, or give another name with -o")
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {folder}; make it first")
    try:
        with temporary_beside(path):
            pass
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror} in {folder}") from error


def check_space(path: Path, needed_bytes: int) -> None:
    """Make sure, before any work starts, that there is room for ``path``.

    Raises:
        OutputError: its disk has less than ``needed_bytes`` free.
    """
    free = shutil.disk_usage(path.parent).free
    if free < needed_bytes:
        raise OutputError(
            f"{path} needs at least {needed_bytes / 1e6:.0f} MB, but its disk has {free / 1e6:.0f} MB free; "
            f"make room, or give a folder on another disk with -o"
        )


@contextmanager
def atomic_output(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a path to write to; on success it replaces ``path``, on any failure it is removed.

    Raises:
        OutputError: see ``check_output``; also when writing fails, for example because the disk is full.
    """
    check_output(path, overwrite=overwrite)
    try:
        with temporary_beside(path) as temporary:
            yield temporary
            _flush(temporary)
            temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} was not written: {error.strerror or error}") from error


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield a new, empty, hidden file in the folder of ``path``; it is removed in the end if it is still there."""
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(_TOKEN_BYTES)}.part{path.suffix}")
    with temporary.open("xb") as mark:
        try:
            with suppress(OSError):  # some network disks know no locks
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of ``path`` that a killed process left behind; those of a living one are locked.

    For files that are written in place: who replaces the temporary file by a new one loses the lock.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.stem)}.{'?' * 2 * _TOKEN_BYTES}.part{glob.escape(path.suffix)}"):
        with suppress(OSError), leftover.open("rb") as mark:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def _flush(path: Path) -> None:
    """Have the bytes on the disk before the name points to them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())

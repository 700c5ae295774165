"""A folder appears whole or not at all: filled beside its target under another name, then renamed."""

import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from autoreg.errors import OutputError


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool, entries: Collection[str]) -> Iterator[Path]:
    """Yield a new, empty folder to fill; on success it replaces ``path``, on any failure it is removed.

    What was at ``path`` stays there until the new folder is complete. Unlike a single file, the folder is not flushed to the
    disk before it is renamed: that would take longer than making it, and whoever loses power can make it again.

    Args:
        path: of the folder. It may exist if it is empty.
        overwrite: replace a folder that is not empty.
        entries: names that such a folder may hold; one that holds anything else is somebody's and never replaced.

    Raises:
        OutputError: ``path`` is in the way or cannot be written, or writing fails, for example because the disk is full.
    """
    target = path.resolve()  # the folder itself, where ``path`` is a link to it
    _check_target(target, overwrite=overwrite, entries=entries)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            temporary.mkdir()
            yield temporary
            _move_into_place(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{path} was not written: {error.strerror or error}") from error


def _check_target(target: Path, *, overwrite: bool, entries: Collection[str]) -> None:
    """Make sure, before any work starts, that the folder may be made or replaced."""
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file, expected the name of a folder to make")
    if not target.parent.is_dir():
        raise OutputError(f"{target} cannot be made: there is no folder {target.parent}; make it first")
    held = sorted(entry.name for entry in target.iterdir()) if target.exists() else []
    if held and not overwrite:
        raise OutputError(f"{target} exists and is not empty; use --overwrite to replace it, or give another name")
    foreign = [name for name in held if name not in entries]
    if foreign:
        raise OutputError(
            f"{target} holds {foreign[0]}, so it is more than a prepared data set and not replaced; give another name"
        )


def _move_into_place(temporary: Path, target: Path) -> None:
    """Rename ``temporary`` to ``target``; what was there is removed afterwards, or is back if that fails."""
    aside = temporary.with_suffix(".old")
    try:
        if target.exists():
            target.rename(aside)
        temporary.rename(target)
    finally:
        if aside.exists() and target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        elif aside.exists():
            aside.rename(target)

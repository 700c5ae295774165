"""Read TOML files that users write, and say what they may have meant."""

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autoreg.errors import ConfigError

_LIMIT_BYTES = 2**20


def read_toml(path: Path, *, expected: str) -> dict[str, Any]:
    """The content of a TOML file.

    Args:
        path: of the file.
        expected: what the file should be, for the error if it is far too large.

    Raises:
        ConfigError: it cannot be read, is not TOML, or has more than 1 MiB.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _LIMIT_BYTES:
        raise ConfigError(f"{path} has more than {_LIMIT_BYTES} bytes, expected {expected}")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error


def suggest(name: str, known: Iterable[str], *, otherwise: str) -> str:
    """What to say of a name that is unknown: the known one that is close to it, or ``otherwise``."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else otherwise

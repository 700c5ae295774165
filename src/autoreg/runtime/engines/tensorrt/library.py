"""TensorRT, and TensorRT for RTX: two libraries of one interface, of which only what both have is used."""

import functools
import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from autoreg.errors import ConfigError, MissingDependencyError
from autoreg.runtime.devices import import_library, in_a_line

_log = logging.getLogger("autoreg")

_MOST_ERRORS, MOST_LETTERS = 8, 600
"""Of what a library complains of: the latest are kept, and so much of them is quoted."""


@dataclass(frozen=True)
class Flavour:
    """One of the two libraries.

    Attributes:
        title: its name for people.
        module: its name for Python, and in the files that describe engines.
        extra: of the package; it brings the library.
    """

    title: str
    module: str
    extra: str


TENSORRT = Flavour("TensorRT", "tensorrt", "tensorrt")
RTX = Flavour("TensorRT-RTX", "tensorrt_rtx", "rtx")
"""For GeForce and RTX GPUs: it also builds on a machine that has none, for those that it is told."""
FLAVOURS = (TENSORRT, RTX)
FLAVOUR_NAMES = tuple(flavour.module for flavour in FLAVOURS)


@dataclass(frozen=True)
class Library:
    """A library that is installed.

    Attributes:
        flavour: which of the two.
        trt: the module.
        version: of the library; engines run on no other.
        logger: what the library is given where it asks for a logger: one for all, as it keeps the first that it gets.
    """

    flavour: Flavour
    trt: Any
    version: str
    logger: Any
    _errors: deque[str] = field(default_factory=deque)

    def __str__(self) -> str:
        return f"{self.flavour.title} {self.version}"

    def take_errors(self) -> str:
        """What the library has complained of since this was last asked, in a line."""
        said = []
        with suppress(IndexError):  # the last one may have been taken by another call that failed, too
            while True:
                said.append(self._errors.popleft())
        return in_a_line("; ".join(dict.fromkeys(said)), MOST_LETTERS) or "it gives no reason"


def find_library(name: str | None = None) -> Library:
    """A library that is installed here.

    Args:
        name: one of ``FLAVOUR_NAMES``; if None, the first of them that is there.

    Raises:
        ConfigError: there is no such library.
        MissingDependencyError: it is not installed.
        EngineError: it is installed and cannot be imported.
    """
    if name is not None:
        return _load(name)
    for flavour in FLAVOURS:
        try:
            return _load(flavour.module)
        except MissingDependencyError:
            continue
    raise MissingDependencyError(
        "tensorrt or tensorrt_rtx is not installed, and engines need one of them: "
        "pip install 'autoreg[tensorrt]', or 'autoreg[rtx]' for a GeForce or RTX GPU"
    )


@functools.cache
def _load(name: str) -> Library:
    flavour = next((one for one in FLAVOURS if one.module == name), None)
    if flavour is None:
        raise ConfigError(f"there is no library {name[:40]!r}, expected one of {', '.join(FLAVOUR_NAMES)}")
    try:
        trt = import_library(flavour.module)
    except MissingDependencyError as error:
        raise MissingDependencyError(
            f"{flavour.module} is not installed, and engines of {flavour.title} need it: "
            f"pip install 'autoreg[{flavour.extra}]'"
        ) from error
    errors: deque[str] = deque(maxlen=_MOST_ERRORS)
    return Library(flavour, trt, trt.__version__, _make_logger(trt, errors), errors)


def _make_logger(trt: Any, errors: deque[str]) -> Any:
    """A logger that keeps errors, so that ours can quote them, and leaves the rest to who debugs."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # a class that is known once the library is
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                errors.append(message)
            _log.debug("%s: %s", trt.__name__, message)

    return Logger()

"""How GDAL is asked for a raster: with patience for servers, care with PNG, and no warning that it lies nowhere on Earth."""

import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from autoreg.errors import DamagedRasterError, RasterError
from autoreg.optional import require

_NETWORK = re.compile(r"://|/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)")
"""Found in the names of rasters that GDAL fetches from elsewhere."""
_PATIENCE = {
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "30",
    "GDAL_HTTP_MAX_RETRY": "2",
    "GDAL_HTTP_RETRY_DELAY": "1",
}
"""How long, in seconds, and how often GDAL asks a server; left to itself, it waits forever for one that does not answer."""
_WITH_CARE = {"GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO"}
"""GDAL's quick way to read a whole PNG does not notice that it is cut off, and returns what happened to be in memory."""
_NO_LISTING = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE"}
"""Masks and georeferences beside a raster are asked for by name, not found by listing its folder: servers seldom list."""


def open_dataset(path: str | Path) -> Any:
    """Open ``path`` with rasterio, whatever it holds.

    Raises:
        DamagedRasterError: GDAL cannot read it.
        RasterError: no such file, or one without bands.
    """
    name = str(path)
    rasterio = load_rasterio()
    if not is_remote(path) and not name.startswith("/vsi"):
        if not Path(name).exists():
            raise RasterError(f"there is no file {name}")
        if Path(name).is_dir():
            raise RasterError(f"{name} is a folder, expected an image file such as {name.rstrip('/')}/*.tif")
    try:
        # rasterio compares the nodata value with what the type can hold, and numpy would warn of one that is beyond that.
        with georeference_optional(), network_options(path), np.errstate(over="ignore"):
            dataset = rasterio.open(name)
    except rasterio.errors.RasterioError as error:
        raise DamagedRasterError(f"{name} cannot be read as an image: {reason_of(error, name)}") from error
    if dataset.count == 0:
        dataset.close()
        raise RasterError(f"{name} holds no bands itself; name one of the rasters inside it")
    return dataset


@contextmanager
def georeference_optional() -> Iterator[None]:
    """Open and write rasters without being warned that they lie nowhere on Earth: a JPEG or PNG seldom does."""
    with _filters.ignoring(load_rasterio().errors.NotGeoreferencedWarning):
        yield


class _Filters:
    """The filters of warnings, one list for all threads: the first that comes changes it, the last that goes restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._restore = ExitStack()

    @contextmanager
    def ignoring(self, kind: type[Warning]) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._restore.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", kind)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._restore.close()


_filters = _Filters()


def is_remote(path: str | Path) -> bool:
    """Whether GDAL fetches ``path`` from elsewhere, by its name."""
    return _NETWORK.search(str(path)) is not None


def network_options(path: str | Path) -> AbstractContextManager[Any]:
    """Let GDAL give up on servers that do not answer, and read PNG with care.

    What the user's environment says, or a ``rasterio.Env``, wins.
    """
    environment = load_rasterio().env
    options = _PATIENCE | _WITH_CARE | (_NO_LISTING if is_remote(path) else {})
    known = os.environ.keys() | (environment.getenv().keys() if environment.hasenv() else set())
    found: AbstractContextManager[Any] = environment.Env.from_defaults(
        **{key: value for key, value in options.items() if key not in known}
    )
    return found


def load_rasterio() -> Any:
    """The library, its errors too.

    Raises:
        MissingDependencyError: it is not installed.
    """
    rasterio = require("rasterio")
    require("rasterio.errors")
    return rasterio


def reason_of(error: Exception, name: str = "") -> str:
    """GDAL's own words, on one line, without the file name that our sentence has already said."""
    cause = error.__cause__ or error
    text = " ".join(str(cause).split())
    for prefix in (f"'{name}' ", f"{name}: "):
        text = text.removeprefix(prefix) if name else text
    return text.rstrip(".")

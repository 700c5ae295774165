"""Keep rasters open between two reads, each thread its own: a handle of GDAL must not be shared between threads."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import Self

from autoreg.raster.reader import RasterReader

MOST_OPEN = 64
"""Rasters that a thread keeps open; another one closes the one that it has not used for longest."""


class Handles:
    """Open rasters by number. Use it as a context manager that ends after the threads which read through it."""

    def __init__(self, open_raster: Callable[[int], RasterReader]) -> None:
        """Keep what ``open_raster`` opens."""
        self._open_raster = open_raster
        self._own = threading.local()
        self._all: list[OrderedDict[int, RasterReader]] = []

    def __getitem__(self, index: int) -> RasterReader:
        """The calling thread's handle of raster ``index``.

        Raises:
            RasterError: it cannot be opened.
        """
        rasters = self._mine()
        if index not in rasters:
            raster = self._open_raster(index)
            if len(rasters) >= MOST_OPEN:
                rasters.popitem(last=False)[1].close()
            rasters[index] = raster
        rasters.move_to_end(index)
        return rasters[index]

    def _mine(self) -> OrderedDict[int, RasterReader]:
        if not hasattr(self._own, "rasters"):
            self._own.rasters = OrderedDict()
            self._all.append(self._own.rasters)
        rasters: OrderedDict[int, RasterReader] = self._own.rasters
        return rasters

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for rasters in self._all:
            for raster in rasters.values():
                raster.close()
            rasters.clear()

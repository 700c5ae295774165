"""Imagery that is read window by window, be it one file or several that fit together."""

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autoreg.raster.window import Window


class Imagery(Protocol):
    """A raster of imagery.

    Attributes:
        height, width: in pixels.
        bands: name of each.
        dtype: of the pixels.
    """

    height: int
    width: int
    bands: tuple[str, ...]
    dtype: str

    @property
    def block_shape(self) -> tuple[int, int]:
        """Height and width in pixels of the blocks that its files store; reads aligned to them waste nothing."""
        ...

    @property
    def georeference(self) -> dict[str, Any]:
        """Where it lies, as the keywords that ``rasterio.open`` takes to write a raster at the same place."""
        ...

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read the pixels of ``window`` (bands, height, width), and which of them are data (height, width).

        A window may reach past the right and bottom edges: there the last column and row are repeated.
        """
        ...

    def is_empty(self, window: Window) -> bool:
        """Whether there is certainly no data in ``window``, as far as that is known without reading it."""
        ...


def cache_bytes(imagery: Imagery, rows: int, cols: int) -> int:
    """Bytes of GDAL's block cache that let windows of ``rows`` rows, along ``cols`` columns, share blocks."""
    block_height, block_width = imagery.block_shape
    cached_rows = (math.ceil(rows / block_height) + 1) * block_height
    cached_cols = (math.ceil(min(cols, imagery.width) / block_width) + 1) * block_width
    bands = len(imagery.bands) + 1  # a mask or an alpha band
    return cached_rows * cached_cols * bands * np.dtype(imagery.dtype).itemsize

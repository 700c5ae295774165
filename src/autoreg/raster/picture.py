"""Pictures of images and labels for people to look at: red, green and blue, uint8 (3, height, width)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoreg.optional import require
from autoreg.raster.gdal import georeference_optional
from autoreg.raster.palette import Colour
from autoreg.spec import NODATA_LABEL

Picture = NDArray[np.uint8]

BLANK = 255
"""The shade of what is not data."""

_PERCENTILES = (2, 98)


def display_bands(bands: Sequence[str]) -> tuple[int, int, int]:
    """Which bands to show as red, green and blue: those of these names, else the first three, else the first as grey."""
    named = {name.lower(): index for index, name in enumerate(bands)}
    if {"red", "green", "blue"} <= named.keys():
        return named["red"], named["green"], named["blue"]
    return (0, 1, 2) if len(bands) >= 3 else (0, 0, 0)


def stretch(images: NDArray[np.number], bands: Sequence[str], valid: NDArray[np.bool_]) -> Picture:
    """Pictures of raw crops that belong together: one stretch for all, per band, from the 2nd to the 98th percentile.

    Args:
        images: raw pixels (N, bands, height, width).
        bands: names of the bands.
        valid: which pixels are data, (N, height, width); the others become ``BLANK``.

    Returns:
        uint8 (N, 3, height, width).
    """
    pictures = np.full((len(images), 3, *images.shape[2:]), BLANK, np.uint8)
    for channel, band in enumerate(display_bands(bands)):
        values = images[:, band][valid]
        if values.size:
            low, high = np.percentile(values, _PERCENTILES)
            share = (values - low) / max(high - low, 1e-9)
            pictures[:, channel][valid] = (255 * np.clip(share, 0, 1)).round()
    return pictures


def paint(labels: NDArray[np.uint8], colours: Sequence[Colour]) -> Picture:
    """Labels (..., height, width) in their colours, (..., 3, height, width); a label without a colour is ``BLANK``."""
    table = np.full((NODATA_LABEL + 1, 3), BLANK, np.uint8)
    table[: len(colours)] = colours
    return np.moveaxis(table[labels], -1, -3).copy()


def encode_picture(picture: Picture, driver: str = "PNG") -> bytes:
    """A picture as a file: PNG, or JPEG, which is smaller where nobody counts pixels."""
    rasterio = require("rasterio")
    shape = {"count": len(picture), "height": picture.shape[1], "width": picture.shape[2], "dtype": "uint8"}
    # In memory: GDAL's drivers would leave a sidecar file beside their output.
    with georeference_optional(), rasterio.MemoryFile() as memory:
        with memory.open(driver=driver, **shape) as dataset:
            dataset.write(picture)
        return bytes(memory.read())

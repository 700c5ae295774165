"""A small picture of a class map."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import ConfigError, DamagedRasterError, RasterError
from autoreg.optional import require
from autoreg.output import atomic_output, remove_leftovers
from autoreg.raster.gdal import open_dataset
from autoreg.raster.picture import encode_picture
from autoreg.spec import NODATA_LABEL


def write_quicklook(map_path: Path, target: Path, *, max_px: int = 1024, overwrite: bool) -> None:
    """Write a class map in its colours as a PNG, transparent where there is no data.

    Each pixel is one of the map, from its smallest overview that is large enough: there are no mixed colours, and a map with
    overviews is not read in full. It is never larger than the map.

    Args:
        map_path: a GeoTIFF of one uint8 band with a colour table.
        target: of the picture.
        max_px: its longer side.
        overwrite: replace an existing file.

    Raises:
        ConfigError: ``max_px`` is less than 1.
        DamagedRasterError: the map cannot be read.
        RasterError: it is no class map.
        OutputError: ``target`` exists already, or cannot be written.
    """
    if max_px < 1:
        raise ConfigError(f"a picture of {max_px} px cannot be drawn, expected at least 1 px")
    labels, colours = _read_map(map_path, max_px)
    remove_leftovers(target)
    with atomic_output(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(encode_picture(np.moveaxis(colours[labels], -1, 0)))


def _read_map(path: Path, max_px: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Labels (height, width), at most ``max_px`` a side, and the colour (256, 4) of each label."""
    errors = require("rasterio.errors")
    with open_dataset(path) as dataset:
        if dataset.colorinterp[0].name != "palette" or dataset.dtypes[0] != "uint8":
            raise RasterError(
                f"{path} has a band of type {dataset.dtypes[0]} shown as {dataset.colorinterp[0].name}, expected a class "
                f"map with a colour table, as autoreg segment writes it"
            )
        colours = np.zeros((NODATA_LABEL + 1, 4), np.uint8)
        for label, colour in dataset.colormap(1).items():
            colours[label] = colour
        colours[NODATA_LABEL] = 0
        scale = min(1.0, max_px / max(dataset.height, dataset.width))
        shape = max(1, round(dataset.height * scale)), max(1, round(dataset.width * scale))
        try:
            return dataset.read(1, out_shape=shape), colours  # the nearest pixel of the overview that suffices
        except errors.RasterioError as error:
            reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
            raise DamagedRasterError(f"{path} is damaged: {reason}") from error

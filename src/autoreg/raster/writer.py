"""Write class maps: Cloud-Optimized GeoTIFFs of uint8 labels."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import RasterError
from autoreg.optional import require
from autoreg.output import atomic_output, temporary_beside
from autoreg.raster.palette import Colour
from autoreg.raster.reader import RasterReader, georeference_optional
from autoreg.raster.window import Window
from autoreg.spec import NODATA_LABEL

BLOCK_PX = 512
"""Side of the blocks in a written map; windows aligned to it are written fastest."""

_STAGING = {"driver": "GTiff", "tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "compress": "zstd"}
_STAGING |= {"zstd_level": 1, "sparse_ok": True, "bigtiff": "if_safer"}
_COG = {"driver": "COG", "compress": "deflate", "level": 1, "blocksize": BLOCK_PX, "bigtiff": "if_safer"}
# Labels are names, not numbers: an average of two of them is a third class.
_COG |= {"overview_resampling": "nearest", "num_threads": "all_cpus"}


class LabelWriter:
    """A class map that is being written; see ``write_labels``."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def write(self, labels: NDArray[np.uint8], window: Window) -> None:
        """Write ``labels`` (height, width) at ``window``. Pixels that are never written are nodata."""
        row, col, height, width = window
        self._dataset.write(labels, 1, window=((row, row + height), (col, col + width)))


@contextlib.contextmanager
def write_labels(
    path: Path, *, like: RasterReader, colours: Mapping[int, Colour], tags: Mapping[str, str], overwrite: bool
) -> Iterator[LabelWriter]:
    """Write a class map of the size and place of ``like``; it appears at ``path`` when the block ends without error.

    The windows go to a temporary tiled file, which becomes a Cloud-Optimized GeoTIFF with overviews at the end: GDAL's COG
    driver alone would hold the whole raster in memory.

    Args:
        path: of the map, ``.tif``.
        like: the raster that is being labelled.
        colours: of the labels that the map may hold; the colour table has them, and nodata (255) is transparent.
        tags: provenance, written as TIFF metadata.
        overwrite: replace an existing file.

    Raises:
        OutputError: it exists already, or cannot be written.
        RasterError: GDAL failed to write it.
    """
    rasterio = require("rasterio")
    copy = require("rasterio.shutil").copy
    profile = _STAGING | {"height": like.height, "width": like.width, "count": 1, "dtype": "uint8"}
    table = {label: (*colour, 255) for label, colour in colours.items()} | {NODATA_LABEL: (0, 0, 0, 0)}
    with atomic_output(path, overwrite=overwrite) as target, temporary_beside(path) as staging:
        try:
            with georeference_optional():
                with rasterio.open(staging, "w", nodata=NODATA_LABEL, **profile, **like.georeference) as dataset:
                    dataset.write_colormap(1, table)
                    dataset.set_band_description(1, "class")
                    dataset.update_tags(**tags)
                    yield LabelWriter(dataset)
                copy(staging, target, **_COG)
        except rasterio.errors.RasterioError as error:
            raise RasterError(f"{path} was not written: {error}") from error
    path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)  # of a file that was here before

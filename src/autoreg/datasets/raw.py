"""Open and read the rasters of a download, one at a time: checked before memory is asked for, complaints in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import RasterError
from autoreg.optional import require
from autoreg.raster.gdal import open_dataset

MAX_SIDE_PX = 20_000
"""A larger raster is not one of these data sets; the largest in them has 6000 x 6000 px."""


@contextmanager
def open_raw(path: Path, *, bands: tuple[int, ...]) -> Iterator[Any]:
    """Open a raster of bytes and look at its header.

    Args:
        path: of the file.
        bands: numbers of bands that it may have.

    Raises:
        RasterError: no such file, not an image, of another type, with another number of bands, or too large.
    """
    with open_dataset(path) as dataset:
        if dataset.count not in bands or set(dataset.dtypes) != {"uint8"}:
            raise RasterError(
                f"{path} has {dataset.count} bands of {dataset.dtypes[0]}, "
                f"expected {' or '.join(map(str, bands))} of uint8 as in the original; download it again"
            )
        if max(dataset.height, dataset.width) > MAX_SIDE_PX:
            raise RasterError(
                f"{path} has {dataset.height} x {dataset.width} px, expected at most {MAX_SIDE_PX} x {MAX_SIDE_PX}; "
                f"it is not a file of this data set"
            )
        yield dataset


def read_bands(dataset: Any, path: Path, indexes: int | list[int], **options: Any) -> NDArray[np.uint8]:
    """Read one band (height, width) or several (bands, height, width); ``options`` as of rasterio's ``read``.

    Raises:
        RasterError: the file is damaged.
    """
    try:
        return np.asarray(dataset.read(indexes, **options), np.uint8)
    except require("rasterio.errors").RasterioError as error:
        raise RasterError(f"{path} is damaged ({error.__cause__ or error}); download it again") from error

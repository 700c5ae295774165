"""Write class maps: Cloud-Optimized GeoTIFFs of uint8 labels."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoreg.errors import RasterError
from autoreg.optional import require
from autoreg.output import atomic_output
from autoreg.raster.cog import BLOCK_PX, Level, compress, write_cog
from autoreg.raster.palette import Colour
from autoreg.raster.reader import RasterReader, georeference_optional
from autoreg.raster.window import Window
from autoreg.spec import NODATA_LABEL

_TEMPLATE = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": NODATA_LABEL, "compress": "deflate"}
_TEMPLATE |= {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX}
_TEMPLATE |= {"sparse_ok": True, "bigtiff": "no", "endianness": "little"}


class LabelWriter:
    """A class map that is being written; see ``write_labels``. Use it from one thread at a time."""

    def __init__(self, level: Level) -> None:
        self._level = level
        self._begun: dict[tuple[int, int], NDArray[np.uint8]] = {}
        self._missing: dict[tuple[int, int], int] = {}

    def write(self, labels: NDArray[np.uint8], window: Window) -> None:
        """Write ``labels`` (height, width) at ``window``, each pixel once. Pixels that are never written are nodata.

        A block is compressed when its last pixel is there, so windows that are whole blocks are written fastest.
        """
        for row in range(window.row // BLOCK_PX, -(-window.bottom // BLOCK_PX)):
            for col in range(window.col // BLOCK_PX, -(-window.right // BLOCK_PX)):
                self._write_block(row, col, labels, window)

    def _write_block(self, row: int, col: int, labels: NDArray[np.uint8], window: Window) -> None:
        place = row, col
        whole = Window(row * BLOCK_PX, col * BLOCK_PX, BLOCK_PX, BLOCK_PX).clipped(self._level.height, self._level.width)
        if place not in self._begun:
            self._begun[place] = np.full((BLOCK_PX, BLOCK_PX), NODATA_LABEL, np.uint8)
            self._missing[place] = whole.height * whole.width
        top, left = max(window.row, whole.row), max(window.col, whole.col)
        part = Window(top, left, min(window.bottom, whole.bottom) - top, min(window.right, whole.right) - left)
        self._begun[place][part.within(whole).slices] = labels[part.within(window).slices]
        self._missing[place] -= part.height * part.width
        if self._missing[place] == 0:
            self._finish(place)

    def _finish(self, place: tuple[int, int]) -> None:
        self._level.put(*place, compress(self._begun.pop(place)))

    def finish(self) -> None:
        """Write the blocks that have pixels missing."""
        for place in list(self._begun):
            self._finish(place)


@contextlib.contextmanager
def write_labels(
    path: Path, *, like: RasterReader, colours: Mapping[int, Colour], tags: Mapping[str, str], overwrite: bool
) -> Iterator[LabelWriter]:
    """Write a class map of the size and place of ``like``; it appears at ``path`` when the block ends without error.

    The blocks go compressed to a file without a name, so that nothing is left of it if the process is killed, and are put in
    the order of a Cloud-Optimized GeoTIFF at the end.

    Args:
        path: of the map, ``.tif``.
        like: the raster that is being labelled.
        colours: of the labels that the map may hold; the colour table has them, and nodata (255) is transparent.
        tags: provenance, written as TIFF metadata.
        overwrite: replace an existing file.

    Raises:
        OutputError: it exists already, or cannot be written.
        RasterError: GDAL cannot write down where the map lies.
    """
    with atomic_output(path, overwrite=overwrite) as target, tempfile.TemporaryFile(dir=path.parent) as spool:
        template = _template(path, like, colours, tags)
        level = Level(like.height, like.width, spool)
        writer = LabelWriter(level)
        yield writer
        writer.finish()
        write_cog(target, template, level)
    path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)  # of a file that was here before


def _template(path: Path, like: RasterReader, colours: Mapping[int, Colour], tags: Mapping[str, str]) -> bytes:
    """The map without its pixels, as GDAL writes it."""
    rasterio = require("rasterio")
    table = {label: (*colour, 255) for label, colour in colours.items()} | {NODATA_LABEL: (0, 0, 0, 0)}
    profile = _TEMPLATE | {"height": like.height, "width": like.width} | like.georeference
    try:
        with georeference_optional(), rasterio.MemoryFile() as memory:
            with memory.open(**profile) as dataset:
                dataset.write_colormap(1, table)
                dataset.set_band_description(1, "class")
                dataset.update_tags(**tags)
            return bytes(memory.read())
    except rasterio.errors.RasterioError as error:
        raise RasterError(f"{path} was not written: {error}") from error

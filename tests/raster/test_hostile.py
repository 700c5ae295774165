"""Rasters that are damaged or meant to do harm: each is read rightly, or refused in one sentence, soon, in little memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio

from autoreg.errors import AutoregError, DamagedRasterError
from autoreg.raster.gdal import georeference_optional
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from conftest import EDGE, needs_edge
from mutations import FLAVOURS, look_at_mutations, write_flavours

MUTATIONS = 240
WHOLE_PX = 4_000_000
"""Rasters of at most so many values are read whole."""


def windows(raster: RasterReader) -> Iterator[Window]:
    bottom, right = max(0, raster.height - 50), max(0, raster.width - 50)
    for row, col in ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)):
        yield Window(row, col, 64, 64)
    if raster.height * raster.width * len(raster.bands) <= WHOLE_PX:
        yield Window(0, 0, raster.height, raster.width)


def look(path: Path) -> str:
    """Read ``path`` in several windows, and return what it is: a raster, or the sentence that refuses it."""
    try:
        with RasterReader(path) as raster:
            assert isinstance(raster.georeference, dict)
            for window in windows(raster):
                empty = raster.is_empty(window)
                pixels, valid = raster.read(window)
                assert pixels.shape == (len(raster.bands), window.height, window.width)
                assert pixels.dtype == raster.dtype
                assert valid.shape == (window.height, window.width)
                assert not (empty and valid.any())
            cells = raster.find_data()
            assert cells is None or max(cells.shape) <= 64
            return f"{raster.height}x{raster.width}x{len(raster.bands)} {raster.dtype}"
    except AutoregError as error:
        sentence = str(error)
    assert sentence
    assert "\n" not in sentence
    return sentence


@needs_edge
@pytest.mark.parametrize("path", sorted(EDGE.glob("*.tif")), ids=lambda path: path.stem)
def test_odd_files_are_read_or_refused(path: Path) -> None:
    found = look(path)
    if path.stem in ("hostile_text_named", "hostile_truncated_200bytes", "hostile_zero_bytes"):
        assert "cannot be read as an image" in found
        return
    if path.stem in ("hostile_truncated_half_of_real_cog", "rasterio_corrupt"):
        assert "is damaged" in found
        return
    with georeference_optional(), rasterio.open(path) as dataset:
        if "palette" in found or "pixels of type" in found:
            assert dataset.dtypes[0] not in ("uint16", "int16", "float32")
            return
        assert found.startswith(f"{dataset.height}x{dataset.width}x")
        with RasterReader(path) as raster:
            for window in windows(raster):
                part = window.clipped(raster.height, raster.width)
                place = ((part.row, part.bottom), (part.col, part.right))
                expected = dataset.read(list(range(1, len(raster.bands) + 1)), window=place)
                got, valid = raster.read(part)
                np.testing.assert_array_equal(got, expected)
                masks = dataset.read_masks(window=place)  # of each band, where a raster has one nodata value
                if dataset.dtypes[0] != "float32" and len(raster.bands) == dataset.count:
                    np.testing.assert_array_equal(valid, masks.any(axis=0))


def test_no_damage_is_a_crash_a_hang_or_a_heap_of_memory(tmp_path: Path) -> None:
    look_at_mutations(look, tmp_path, MUTATIONS)


@pytest.mark.parametrize("name", FLAVOURS)
def test_a_file_that_is_cut_off_is_noticed(tmp_path: Path, name: str) -> None:
    write_flavours(tmp_path)
    content = (tmp_path / name).read_bytes()
    for cut in np.linspace(len(content) // 3, len(content) - 30, 40, dtype=int):
        (tmp_path / name).write_bytes(content[:cut])
        with pytest.raises(DamagedRasterError), RasterReader(tmp_path / name, bands=3) as raster:
            raster.read(Window(0, 0, raster.height, raster.width))

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp, Resampling

from autoreg.errors import DamagedRasterError, RasterError
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from conftest import damage_raster, noise, save_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

ALL = Window(0, 0, 20, 30)


def read(path: Path, bands: int | None = None, window: Window = ALL) -> tuple[Any, Any]:
    with RasterReader(path, bands=bands) as raster:
        return raster.read(window)


@pytest.mark.parametrize("driver", ["GTiff", "PNG"])
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_reads_what_was_written(tmp_path: Path, driver: str, bands: int, dtype: str) -> None:
    pixels = noise(bands, 20, 30).astype(dtype)
    path = save_raster(tmp_path / "a", pixels, driver=driver)
    got, valid = read(path)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, pixels)
    assert valid.all()


def test_reads_jpeg(tmp_path: Path) -> None:
    path = save_raster(tmp_path / "a.jpg", np.full((3, 20, 30), 77, np.uint8), driver="JPEG")
    got, _ = read(path)
    assert np.abs(got.astype(int) - 77).max() <= 2


def test_a_window_past_the_edge_repeats_the_last_row_and_column(tmp_path: Path) -> None:
    pixels = noise(2, 20, 30)
    path = save_raster(tmp_path / "a.tif", pixels)
    got, valid = read(path, window=Window(17, 28, 5, 4))
    np.testing.assert_array_equal(got, np.pad(pixels[:, 17:, 28:], ((0, 0), (0, 2), (0, 2)), mode="edge"))
    assert valid.all()


def test_nodata_is_where_every_band_has_the_nodata_value(tmp_path: Path) -> None:
    pixels = noise(2, 20, 30) // 2 + 1
    pixels[:, :5] = 0
    pixels[0, 10] = 0  # dark in one band is not nodata
    _, valid = read(save_raster(tmp_path / "a.tif", pixels, nodata=0))
    assert not valid[:5].any()
    assert valid[5:].all()


def test_a_nodata_value_that_the_type_cannot_hold_masks_nothing(tmp_path: Path) -> None:
    path = save_raster(tmp_path / "a.tif", np.zeros((1, 20, 30), np.uint8))
    vrt = tmp_path / "a.vrt"
    vrt.write_text(
        '<VRTDataset rasterXSize="30" rasterYSize="20"><VRTRasterBand dataType="Byte" band="1">'
        '<NoDataValue>-9999</NoDataValue><SimpleSource><SourceFilename relativeToVRT="1">'
        f"{path.name}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    assert read(vrt)[1].all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_that_is_not_finite_in_some_band_is_no_data(tmp_path: Path, value: float) -> None:
    pixels = np.ones((2, 20, 30), np.float32)
    pixels[1, 3, 4] = value
    _, valid = read(save_raster(tmp_path / "a.tif", pixels))
    assert not valid[3, 4]
    assert valid.sum() == 20 * 30 - 1


def test_the_mask_of_the_file_is_respected(tmp_path: Path) -> None:
    mask = np.full((20, 30), 255, np.uint8)
    mask[:, :7] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = save_raster(tmp_path / "a.tif", noise(3, 20, 30), mask)
    np.testing.assert_array_equal(read(path)[1], mask > 0)


def four_bands(path: Path, last: np.ndarray) -> Path:
    save_raster(path, np.concatenate([noise(3, 20, 30), last[None]]))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    return path


def test_alpha_is_a_mask_unless_it_measures_something(tmp_path: Path) -> None:
    switch = np.where(noise(1, 20, 30)[0] > 100, 255, 0).astype(np.uint8)
    infrared = noise(1, 20, 30, seed=5)[0]
    masked, measured = four_bands(tmp_path / "a.tif", switch), four_bands(tmp_path / "b.tif", infrared)
    pixels, valid = read(masked)
    assert len(pixels) == 3
    np.testing.assert_array_equal(valid, switch > 0)
    pixels, valid = read(measured)
    assert len(pixels) == 4
    assert valid.all()
    # Whoever knows how many bands to expect decides.
    assert len(read(masked, bands=4)[0]) == 4
    assert len(read(measured, bands=3)[0]) == 3


def test_bands_are_named_by_description_or_colour(tmp_path: Path) -> None:
    path = save_raster(tmp_path / "a.tif", noise(4, 20, 30), photometric="RGB", alpha="unspecified")
    with rasterio.open(path, "r+") as dataset:
        dataset.set_band_description(2, "vert")
    with RasterReader(path) as raster:
        assert raster.bands == ("red", "vert", "blue", "band4")


def test_what_is_no_usable_raster_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.tif"
    text.write_text("not an image")
    empty = tmp_path / "empty.tif"
    empty.touch()
    double = save_raster(tmp_path / "double.tif", np.ones((1, 4, 4)))
    palette = save_raster(tmp_path / "palette.tif", np.ones((1, 4, 4), np.uint8))
    with rasterio.open(palette, "r+") as dataset:
        dataset.write_colormap(1, {1: (255, 0, 0, 255)})
    for path, message in (
        (tmp_path / "none.tif", r"there is no file .*none\.tif"),
        (tmp_path, "is a folder, expected an image"),
        (text, r"text\.tif cannot be read as an image"),
        (empty, r"empty\.tif cannot be read as an image"),
        (double, "type float64, expected one of uint8"),
        (palette, "palette image.*gdal_translate -expand rgb"),
    ):
        with pytest.raises(RasterError, match=message):
            RasterReader(path)


def test_damage_is_reported_where_it_is_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1, 256, 256), np.uint8)
    tiles: dict[str, Any] = {"compress": "deflate", "tiled": True, "blockxsize": 64, "blockysize": 64}
    path = damage_raster(save_raster(tmp_path / "a.tif", pixels, **tiles))
    with pytest.raises(DamagedRasterError, match=r"a\.tif is damaged"):
        read(path, window=Window(0, 0, 256, 256))


def test_an_overview_shows_where_data_is(tmp_path: Path) -> None:
    pixels = np.zeros((2, 1000, 1500), np.uint8)
    pixels[:, 500:600, 300:450] = 7
    path = save_raster(tmp_path / "a.tif", pixels, nodata=0, tiled=True)
    with RasterReader(path) as raster:
        assert raster.find_data() is None  # to look would be to decode the whole
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 8], Resampling.average)
    with RasterReader(path) as raster:
        cells = raster.find_data()
    assert cells is not None
    assert cells.shape == (64, 64)
    rows, cols = np.nonzero(cells)
    assert (rows.min(), rows.max()) == (500 * 64 // 1000, 599 * 64 // 1000)
    assert (cols.min(), cols.max()) == (300 * 64 // 1500, 449 * 64 // 1500)
    with rasterio.open(path, "r+") as dataset:
        dataset.nodata = None
    with RasterReader(path) as raster:
        assert raster.find_data() is None  # all of it is data


def test_an_overview_of_the_mask_shows_where_data_is(tmp_path: Path) -> None:
    mask = np.zeros((400, 400), np.uint8)
    mask[:50, :50] = 255
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = save_raster(tmp_path / "a.tif", noise(3, 400, 400), mask, tiled=True)
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2, 4], Resampling.nearest)
    with RasterReader(path) as raster:
        cells = raster.find_data()
    assert cells is not None
    assert (np.argwhere(cells).max(axis=0) <= 8).all()
    assert cells[:8, :8].all()


@pytest.mark.filterwarnings("error")
def test_many_threads_open_rasters_without_georeference_quietly(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = [save_raster(tmp_path / f"{index}.tif", noise(1, 20, 20)) for index in range(200)]
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, paths))
    assert list(warnings.filters) == before

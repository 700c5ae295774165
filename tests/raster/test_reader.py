import socket
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import Affine

from autoreg.errors import DamagedRasterError, RasterError
from autoreg.raster.fingerprint import fingerprint
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from conftest import LENSES, damage_raster, noise, save_raster
from servers import served

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

ALL = Window(0, 0, 20, 30)


def read(path: str | Path, bands: int | None = None, window: Window = ALL) -> tuple[Any, Any]:
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


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"interleave": "band"},
        {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "zstd"},
        {"tiled": True, "blockxsize": 16, "blockysize": 16, "bigtiff": "yes", "endianness": "big"},
    ],
    ids=["strips", "planes", "tiles", "bigtiff"],
)
def test_reads_every_layout_of_tiff(tmp_path: Path, dtype: str, profile: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, 120, (8, 40, 50)).astype(dtype)
    path = save_raster(tmp_path / "a.tif", pixels, **profile)
    for window in (Window(0, 0, 40, 50), Window(13, 7, 20, 33)):
        got, valid = read(path, window=window)
        np.testing.assert_array_equal(got, pixels[:, *window.slices])
        assert got.dtype == dtype
        assert valid.all()


def test_reads_jpeg_in_tiff_as_rgb(tmp_path: Path) -> None:
    pixels = np.stack([np.full((64, 64), value, np.uint8) for value in (200, 100, 30)])
    jpeg: dict[str, Any] = {"compress": "jpeg", "photometric": "YCBCR", "tiled": True, "blockxsize": 32, "blockysize": 32}
    got, valid = read(save_raster(tmp_path / "a.tif", pixels, **jpeg), window=Window(0, 0, 64, 64))
    assert np.abs(got.astype(int) - pixels).max() <= 3
    assert valid.all()


def test_a_mask_beside_the_file_is_respected(tmp_path: Path) -> None:
    mask = np.full((20, 30), 255, np.uint8)
    mask[4:9, :7] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        path = save_raster(tmp_path / "a.tif", noise(3, 20, 30), mask)
    assert path.with_name("a.tif.msk").exists()
    np.testing.assert_array_equal(read(path)[1], mask > 0)


def test_the_hole_of_a_vrt_is_no_data(tmp_path: Path) -> None:
    pixels = noise(1, 20, 10) // 2 + 1
    save_raster(tmp_path / "a.tif", pixels)
    vrt = write_vrt(tmp_path / "a.vrt", "a.tif", place=(0, 20, 10, 20), bands="<NoDataValue>0</NoDataValue>")
    got, valid = read(vrt)
    np.testing.assert_array_equal(valid, np.arange(30) >= np.full((20, 1), 20))
    np.testing.assert_array_equal(got[:, :, 20:], pixels)


def test_no_value_of_nodata_is_equal_in_value_only(tmp_path: Path) -> None:
    """A value that float32 holds only rounded, one that it does not hold, and one that is not finite."""
    pixels = np.ones((1, 20, 30), np.float32)
    pixels[0, 0, 0] = np.float32(-3.4028235e38)
    assert read(save_raster(tmp_path / "a.tif", pixels, nodata=float(np.finfo(np.float32).min)))[1].sum() == 599
    for value in ("1e300", "inf", "nan"):
        save_raster(tmp_path / "b.tif", pixels)
        vrt = write_vrt(tmp_path / "b.vrt", "b.tif", dtype="Float32", bands=f"<NoDataValue>{value}</NoDataValue>")
        assert read(vrt)[1].all()


TILES: dict[str, Any] = {"tiled": True, "blockxsize": 16, "blockysize": 16, "sparse_ok": True}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("dtype", "profile", "counts"),
    [
        ("uint8", {}, False),
        ("uint8", {"nodata": 0}, True),
        ("uint8", {"nodata": 7}, True),
        ("int16", {"nodata": -9999, "compress": "deflate"}, True),
        ("float32", {"nodata": np.nan}, True),
        ("float32", {"nodata": -1e9, "compress": "zstd"}, True),
        ("float32", {}, False),
        ("uint8", {"alpha": True}, True),
        ("uint8", {"alpha": True, "nodata": 0}, True),
        ("uint16", {"alpha": True, "nodata": 7}, True),  # the nodata value in all bands, though not in alpha alone
        ("uint8", {"mask": True}, False),
        ("uint8", {"mask": True, "nodata": 0}, True),
        ("uint8", {"tiled": False, "blockysize": 4, "nodata": 0}, False),
        ("uint8", {"blockxsize": 128, "nodata": 0}, False),
    ],
)
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_where_a_file_stores_no_block_there_is_no_data(
    tmp_path: Path, dtype: str, profile: dict[str, Any], counts: bool, interleave: str, seed: int
) -> None:
    """``counts``: whether a block that is not stored is known to be no data."""
    rng = np.random.default_rng(seed)
    options = TILES | {"interleave": interleave} | profile
    alpha, mask = options.pop("alpha", False), options.pop("mask", False)
    path = tmp_path / "a.tif"
    height, width, bands = 90, 77, 3 + alpha
    stored = rng.random((6, 5)) < 0.3
    shape = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": dtype}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **shape | options) as dataset:
        if alpha:
            dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
        for row, col in np.argwhere(stored).tolist():
            part = Window(16 * row, 16 * col, 16, 16).clipped(height, width)
            place = ((part.row, part.bottom), (part.col, part.right))
            for index in rng.permutation(bands)[: rng.integers(1, bands + 1)].tolist():  # some have blocks in few bands
                pixels = rng.integers(0, 120, (part.height, part.width)).astype(dtype)
                dataset.write(pixels, index + 1, window=place)
        if mask:
            dataset.write_mask(rng.integers(0, 2, (height, width)).astype(np.uint8) * 255)
    with RasterReader(path, bands=3) as raster:
        for _ in range(60):
            row, col = int(rng.integers(height)), int(rng.integers(width))
            window = Window(row, col, int(rng.integers(1, 40)), int(rng.integers(1, 40)))
            if raster.is_empty(window):
                assert not raster.read(window)[1].any()
        for row, col in product(range(6), range(5)):
            assert raster.is_empty(Window(16 * row, 16 * col, 16, 16)) >= (counts and not stored[row, col])
        if not counts:
            assert not raster.is_empty(Window(0, 0, height, width))


def test_a_list_of_blocks_that_is_cut_off_is_not_emptiness(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    shape = {"driver": "GTiff", "height": 1024, "width": 1024, "count": 1, "dtype": "uint8", "nodata": 0}
    with rasterio.open(path, "w", **shape | TILES):
        pass
    with RasterReader(path) as raster:
        assert raster.is_empty(Window(0, 0, 1024, 1024))
    path.write_bytes(path.read_bytes()[:-2000])
    with RasterReader(path) as raster:
        assert not raster.is_empty(Window(1008, 1008, 16, 16))
    with RasterReader(path) as raster, pytest.raises(DamagedRasterError, match="damaged"):
        raster.read(Window(1008, 1008, 16, 16))


def test_a_huge_file_without_blocks_is_opened_and_passed_over_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    shape = {"driver": "GTiff", "height": 100_000, "width": 100_000, "count": 4, "dtype": "uint8", "photometric": "RGB"}
    with rasterio.open(
        path, "w", **shape | TILES | {"blockxsize": 512, "blockysize": 512, "alpha": "unspecified"}
    ) as dataset:
        dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    begin = time.monotonic()
    with RasterReader(path) as raster:
        assert raster.bands == ("red", "green", "blue")
        assert all(raster.is_empty(Window(row, 0, 1024, 100_000)) for row in range(0, 100_000, 1024))
    assert time.monotonic() - begin < 20


def test_a_raster_in_blocks_too_large_to_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tile = {"tiled": True, "blockxsize": 2**14, "blockysize": 2**13, "sparse_ok": True}
    shape = {"driver": "GTiff", "height": 2**15, "width": 2**15, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **shape | tile):
        pass
    message = r"a\.tif is stored in blocks of 8192 x 16384 pixels in 3 bands, which are 384 MiB.*at most 256.*TILED=YES"
    with pytest.raises(RasterError, match=message):
        RasterReader(path)


def test_very_many_bands_are_refused_at_once(tmp_path: Path) -> None:
    shape = {"driver": "GTiff", "height": 4, "width": 4, "dtype": "uint8", "sparse_ok": True}
    for count in (300, 65535):
        with rasterio.open(tmp_path / f"{count}.tif", "w", count=count, **shape):
            pass
    assert len(read(tmp_path / "300.tif", window=Window(0, 0, 4, 4))[0]) == 300
    with pytest.raises(RasterError, match=r"has 65535 bands, expected at most 4096; select some with gdal_translate -b"):
        RasterReader(tmp_path / "65535.tif")


def write_vrt(
    path: Path,
    source: str,
    *,
    size: tuple[int, int] = (20, 30),
    place: tuple[int, int, int, int] | None = None,
    dtype: str = "Byte",
    bands: str = "",
) -> Path:
    """A VRT of one band that shows ``source``, whole or at ``place`` (row, col, width, height)."""
    row, col, width, height = place or (0, 0, size[1], size[0])
    relative = int("://" not in source)
    path.write_text(
        f'<VRTDataset rasterXSize="{size[1]}" rasterYSize="{size[0]}"><VRTRasterBand dataType="{dtype}" band="1">{bands}'
        f'<SimpleSource><SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>'
        f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
        f'<DstRect xOff="{col}" yOff="{row}" xSize="{width}" ySize="{height}"/>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return path


def test_a_vrt_without_its_sources_is_one_sentence(tmp_path: Path) -> None:
    absent = write_vrt(tmp_path / "absent.vrt", "none.tif")
    itself = write_vrt(tmp_path / "itself.vrt", "itself.vrt")
    inner = write_vrt(tmp_path / "inner.vrt", "absent.vrt")
    for path in (absent, itself, inner):
        with pytest.raises(RasterError, match=rf"{path.name} (is damaged|cannot be read)") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_a_vrt_of_absurd_size_is_read_by_window(tmp_path: Path) -> None:
    pixels = noise(1, 20, 30)
    save_raster(tmp_path / "a.tif", pixels)
    largest = 2**31 - 1
    path = write_vrt(tmp_path / "a.vrt", "a.tif", size=(largest, largest), place=(0, 0, 30, 20))
    with RasterReader(path) as raster:
        assert (raster.height, raster.width) == (largest, largest)
        np.testing.assert_array_equal(raster.read(ALL)[0], pixels)
        assert not raster.read(Window(largest - 1, largest - 1, 4, 4))[0].any()
        assert not raster.is_empty(Window(largest - 1, largest - 1, 4, 4))


def test_a_vrt_runs_no_python(tmp_path: Path) -> None:
    save_raster(tmp_path / "a.tif", noise(1, 20, 30))
    trace = tmp_path / "trace"
    path = write_vrt(tmp_path / "a.vrt", "a.tif")
    code = f"def f(*args, **kwargs):\n    open({str(trace)!r}, 'w')\n"
    function = (
        f'<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand"><PixelFunctionType>f</PixelFunctionType>'
        f"<PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionCode>{code}</PixelFunctionCode>"
    )
    path.write_text(path.read_text().replace('<VRTRasterBand dataType="Byte" band="1">', function))
    with pytest.raises(RasterError, match=r"a\.vrt"):
        read(path)
    assert not trace.exists()


POINTS = [
    GroundControlPoint(row, col, 7 + col / 100, 50 - row / 100, 0) for row, col in ((0, 0), (0, 29), (19, 0), (19, 29))
]
UTM, DEGREES = CRS.from_epsg(32632), CRS.from_epsg(4326)


@pytest.mark.parametrize(
    "place",
    [
        {},
        {"crs": UTM, "transform": Affine(0.3, 0, 5e5, 0, -0.3, 5.3e6)},
        {"crs": UTM, "transform": Affine(0.3, 0, 5e5, 0, 0.3, 5.3e6)},
        {"crs": UTM, "transform": Affine(0.2, 0.17, 5e5, 0.18, -0.2, 5.3e6)},
        {"transform": Affine(0.3, 0, 5e5, 0, -0.3, 5.3e6)},
        {"crs": DEGREES, "transform": Affine(0.1, 0, 179, 0, -0.1, 2)},
        {"crs": DEGREES, "gcps": POINTS},
        {"crs": CRS(), "gcps": POINTS},
        {"rpcs": LENSES},
        {"crs": DEGREES, "gcps": POINTS, "rpcs": LENSES},
    ],
    ids=["none", "north-up", "south-up", "rotated", "no-crs", "dateline", "gcps", "gcps-no-crs", "rpcs", "gcps-and-rpcs"],
)
def test_a_georeference_survives_being_written(tmp_path: Path, place: dict[str, Any]) -> None:
    def comparable(found: dict[str, Any]) -> dict[str, Any]:
        points = [(point.row, point.col, point.x, point.y, point.z) for point in found.get("gcps", [])]
        rpcs = {"rpcs": found["rpcs"].to_gdal()} if "rpcs" in found else {}
        return found | {"gcps": points} | rpcs

    first = save_raster(tmp_path / "a.tif", noise(1, 20, 30), **place)
    with RasterReader(first) as raster:
        found = raster.georeference
    with RasterReader(save_raster(tmp_path / "b.tif", noise(1, 20, 30), **found)) as raster:
        again = raster.georeference
    assert found.keys() == place.keys()
    assert comparable(found) == comparable(again)
    expected = comparable(place)
    assert comparable(found) | {"rpcs": 0} == expected | {"rpcs": 0}
    if "rpcs" in place:
        assert found["rpcs"].samp_num_coeff == LENSES.samp_num_coeff


def test_rpcs_beside_the_file_are_part_of_the_georeference(tmp_path: Path) -> None:
    with rasterio.Env(GDAL_PAM_ENABLED=True):
        path = save_raster(tmp_path / "a.png", noise(1, 20, 30), driver="PNG")
        items = "".join(f'<MDI key="{key}">{value}</MDI>' for key, value in LENSES.to_gdal().items())
        text = f'<PAMDataset><Metadata domain="RPC">{items}</Metadata></PAMDataset>'
        path.with_name("a.png.aux.xml").write_text(text)
    with RasterReader(path) as raster:
        assert raster.georeference["rpcs"].samp_num_coeff == LENSES.samp_num_coeff


def test_reads_from_a_server_with_the_mask_that_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 300, 300), np.uint8)
    mask = np.full((300, 300), 255, np.uint8)
    mask[40:90, :70] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        save_raster(tmp_path / "a.tif", pixels, mask, tiled=True, blockxsize=64, blockysize=64)
    window = Window(30, 50, 100, 100)
    with served(tmp_path) as address:
        for name in (f"{address}/a.tif", f"/vsicurl/{address}/a.tif"):
            with RasterReader(name) as raster:
                got, valid = raster.read(window)
                assert not raster.is_empty(window)
            assert fingerprint(name) == fingerprint(name)
            np.testing.assert_array_equal(got, pixels[:, *window.slices])
            np.testing.assert_array_equal(valid, mask[window.slices] > 0)
        with pytest.raises(RasterError, match=r"none\.tif cannot be read as an image"):
            RasterReader(f"{address}/none.tif")


def test_a_server_that_does_not_answer_is_given_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")  # which wins over what autoreg would say
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        name = f"http://127.0.0.1:{silent.getsockname()[1]}/a.tif"
        for path in (name, write_vrt(tmp_path / "a.vrt", name)):
            begin = time.monotonic()
            with pytest.raises(RasterError, match=r"a\.(tif|vrt) (cannot be read as an image|is damaged)") as caught:
                read(path)
            assert "\n" not in str(caught.value)
            assert time.monotonic() - begin < 20

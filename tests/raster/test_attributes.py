import ctypes
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from autoreg.raster.attributes import write_attribute_table
from autoreg.spec import MapClass
from conftest import noise, save_map

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

NAMES = ('wood & <water> "wet"', "Grünland — 草", "]]>' &amp; bare")
CLASSES = tuple(MapClass(label, name, f"#0{label}a0ff") for label, name in zip((4, 0, 2), NAMES, strict=True))
PIXELS = {0: 3_000_000_000, 4: 17}


def legend_map(path: Path) -> Path:
    labels = np.where(noise(1, 600, 700)[0] > 99, 4, 0).astype(np.uint8)
    return save_map(path, labels, {item.label: item.rgb for item in CLASSES})


def load_gdal() -> ctypes.CDLL:
    """The library that rasterio has brought."""
    files = sorted((Path(rasterio.__file__).parent.parent / "rasterio.libs").glob("libgdal*"))
    if not files:
        pytest.skip("rasterio was built with a GDAL of the system")
    gdal = ctypes.CDLL(str(files[0]))
    for name in ("GDALOpen", "GDALGetRasterBand", "GDALGetDefaultRAT", "GDALGetRasterCategoryNames"):
        getattr(gdal, name).restype = ctypes.c_void_p
    for name in ("GDALRATGetNameOfCol", "GDALRATGetValueAsString"):
        getattr(gdal, name).restype = ctypes.c_char_p
    gdal.GDALRATGetValueAsDouble.restype = ctypes.c_double
    gdal.GDALGetRasterCategoryNames.restype = ctypes.POINTER(ctypes.c_char_p)
    return gdal


def test_gdal_reads_the_table(tmp_path: Path) -> None:
    path = legend_map(tmp_path / "map.tif")
    write_attribute_table(path, CLASSES, PIXELS)
    gdal = load_gdal()
    gdal.GDALAllRegister()
    dataset = ctypes.c_void_p(gdal.GDALOpen(str(path).encode(), 0))
    band = ctypes.c_void_p(gdal.GDALGetRasterBand(dataset, 1))
    table = ctypes.c_void_p(gdal.GDALGetDefaultRAT(band))
    assert table.value
    columns = [gdal.GDALRATGetNameOfCol(table, index).decode() for index in range(gdal.GDALRATGetColumnCount(table))]
    assert columns == ["Value", "Count", "ClassName", "Red", "Green", "Blue", "Alpha"]
    assert [gdal.GDALRATGetUsageOfCol(table, index) for index in range(7)] == [5, 1, 2, 6, 7, 8, 9]
    rows = gdal.GDALRATGetRowCount(table)
    assert [gdal.GDALRATGetValueAsInt(table, row, 0) for row in range(rows)] == [0, 2, 4]
    assert [gdal.GDALRATGetValueAsDouble(table, row, 1) for row in range(rows)] == [3e9, 0, 17]
    names = [gdal.GDALRATGetValueAsString(table, row, 2).decode() for row in range(rows)]
    assert names == [NAMES[1], NAMES[2], NAMES[0]]
    assert [gdal.GDALRATGetValueAsInt(table, 2, column) for column in range(3, 7)] == [4, 0xA0, 0xFF, 255]
    categories = gdal.GDALGetRasterCategoryNames(band)
    assert [categories[index] for index in range(6)] == [
        NAMES[1].encode(),
        b"",
        NAMES[2].encode(),
        b"",
        NAMES[0].encode(),
        None,
    ]
    gdal.GDALClose(dataset)


def test_the_map_stays_what_it_is(tmp_path: Path) -> None:
    path = legend_map(tmp_path / "map.tif")
    with rasterio.open(path) as dataset:
        before = dataset.colormap(1), dataset.nodata, dataset.tags(), dataset.overviews(1), dataset.read(1).tobytes()
    content = path.read_bytes()
    (tmp_path / "map.tif.aux.xml").write_text("of an older map")
    write_attribute_table(path, CLASSES, PIXELS)
    assert path.read_bytes() == content
    assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(path) as dataset:
        assert (
            dataset.colormap(1),
            dataset.nodata,
            dataset.tags(),
            dataset.overviews(1),
            dataset.read(1).tobytes(),
        ) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml"]


def test_names_are_xml_that_anyone_reads(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    write_attribute_table(path, CLASSES, {})
    root = ElementTree.parse(tmp_path / "map.tif.aux.xml").getroot()
    assert [item.text for item in root.iter("Category")] == [NAMES[1], None, NAMES[2], None, NAMES[0]]

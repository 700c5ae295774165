import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pyogrio
import pytest
import rasterio.features
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS

from autoreg.errors import AutoregError, ConfigError, DamagedRasterError, OutputError, RasterError
from autoreg.raster import polygons
from autoreg.raster.area import row_areas_m2
from autoreg.raster.polygons import write_polygons
from autoreg.spec import MapClass
from conftest import damage_raster, noise, save_raster

Labels = NDArray[np.uint8]

UTM, WGS84 = "EPSG:32633", "EPSG:4326"
PLACE = Affine(10, 0, 500_000, 0, -10, 5_400_000)
TURNED = Affine.translation(500_000, 5_400_000) @ Affine.rotation(30) @ Affine.scale(0.3, 0.3)
CLASSES = tuple(MapClass(label, f"wood & <{label}>", f"#0000{label:02x}") for label in (0, 1, 2, 7))


def save_map(path: Path, labels: Labels, transform: Affine = PLACE, crs: str | None = UTM, **profile: Any) -> Path:
    options = {"nodata": 255, "transform": transform, "crs": crs, "compress": "deflate"}
    return save_raster(path, labels[None], **(options | profile))


def blobs(height: int, width: int, seed: int = 0) -> Labels:
    """Labels 0, 1, 2 and nodata in blocks of three pixels, with single pixels in them."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array([0, 1, 2, 2, 255], np.uint8), (-(-height // 3), -(-width // 3)))
    labels = np.kron(coarse, np.ones((3, 3), np.uint8))[:height, :width]
    specks = rng.random(labels.shape) < 0.1
    labels[specks] = rng.choice(np.array([0, 7], np.uint8), int(specks.sum()))
    return labels


def write(maps: list[Path], target: Path, **options: Any) -> int:
    return write_polygons(
        maps, target, **({"classes": CLASSES, "min_area_m2": None, "simplify_m": None, "overwrite": True} | options)
    )


def read(path: Path) -> tuple[dict[str, list[Any]], NDArray[np.object_]]:
    """Attributes and polygons."""
    if path.suffix == ".parquet":
        columns = pyarrow.parquet.read_table(path).to_pydict()
        return columns, shapely.from_wkb(columns.pop("geometry"))
    meta, _, geometries, values = pyogrio.raw.read(path)
    return {str(name): list(column) for name, column in zip(meta["fields"], values, strict=True)}, shapely.from_wkb(
        geometries
    )


def assert_polygons_of(labels: Labels, transform: Affine, path: Path) -> None:
    """They are those of GDAL on the whole map."""
    columns, found = read(path)
    shapes = rasterio.features.shapes(labels, mask=labels != 255, connectivity=4, transform=transform)
    expected = [(int(label), shapely.geometry.shape(shape)) for shape, label in shapes]

    def key(pair: tuple[int, Any]) -> tuple[Any, ...]:
        return pair[0], *(round(value, 6) for value in pair[1].bounds), round(pair[1].area, 6)

    pairs = sorted(zip(columns["label"], found, strict=True), key=key)
    assert len(pairs) == len(expected)
    for one, other in zip(pairs, sorted(expected, key=key), strict=True):
        assert one[0] == other[0]
        assert one[1].symmetric_difference(other[1]).area <= 1e-6 * other[1].area
    assert shapely.is_valid(found).all()
    assert shapely.coverage_is_valid(found)


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".parquet", ".GPKG"])
def test_a_map_becomes_polygons_with_attributes(tmp_path: Path, suffix: str) -> None:
    labels = blobs(70, 50)
    out = tmp_path / "out"
    out.mkdir()
    target = out / f"my map{suffix}"
    count = write([save_map(tmp_path / "map.tif", labels)], target)
    assert_polygons_of(labels, PLACE, target)
    columns, found = read(target)
    assert list(columns) == ["label", "class", "colour", "area_m2"]
    assert count == len(found)
    by_label = {item.label: item for item in CLASSES}
    assert columns["class"] == [by_label[label].name for label in columns["label"]]
    assert columns["colour"] == [by_label[label].colour for label in columns["label"]]
    np.testing.assert_allclose(columns["area_m2"], shapely.area(found))
    assert shapely.is_ccw(shapely.get_exterior_ring(found)).all()
    assert list(out.iterdir()) == [target]


def test_the_crs_is_written(tmp_path: Path) -> None:
    path = save_map(tmp_path / "map.tif", blobs(9, 9))
    for suffix in (".gpkg", ".fgb"):
        write([path], tmp_path / f"map{suffix}")
        assert CRS.from_user_input(pyogrio.read_info(tmp_path / f"map{suffix}")["crs"]) == CRS.from_user_input(UTM)
        assert pyogrio.list_layers(tmp_path / f"map{suffix}").tolist() == [["map", "Polygon"]]
    write([path], tmp_path / "map.parquet")
    geo = json.loads(pyarrow.parquet.read_metadata(tmp_path / "map.parquet").metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32633}
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    _, found = read(tmp_path / "map.parquet")
    np.testing.assert_allclose(column["bbox"], shapely.total_bounds(found))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=14),
        elements=st.sampled_from([0, 1, 255]),
        fill=st.nothing(),
    ),
    data=st.data(),
)
def test_maps_that_touch_are_one(tmp_path: Path, labels: Labels, data: st.DataObject) -> None:
    row, col = (data.draw(st.integers(1, size - 1)) for size in labels.shape)
    parts = {(0, 0): labels[:row, :col], (0, col): labels[:row, col:], (row, 0): labels[row:]}
    maps = [
        save_map(tmp_path / f"{index}.tif", part, PLACE @ Affine.translation(place[1], place[0]))
        for index, (place, part) in enumerate(parts.items())
    ]
    order = data.draw(st.permutations(maps))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygons, "_STRIP_PIXELS", 3 * labels.shape[1])
        write(order, tmp_path / "map.fgb")
    assert_polygons_of(labels, PLACE, tmp_path / "map.fgb")


def test_maps_of_different_grids_are_polygons_of_their_own(tmp_path: Path) -> None:
    labels = np.zeros((5, 6), np.uint8)
    near = save_map(tmp_path / "a.tif", labels)
    beside = save_map(tmp_path / "b.tif", labels, PLACE @ Affine.translation(6, 0))
    off = save_map(tmp_path / "c.tif", labels, PLACE @ Affine.translation(0, 5.5))
    assert write([near, off, beside], tmp_path / "map.gpkg") == 2
    assert sorted(read(tmp_path / "map.gpkg")[0]["area_m2"]) == [3000, 6000]


@pytest.mark.parametrize(
    ("crs", "transform"),
    [(UTM, TURNED), (WGS84, Affine(1e-3, 0, 11, 0, -1e-3, 60)), (None, Affine.identity()), (UTM, Affine(2, 0, 0, 0, 2, 0))],
    ids=["rotated", "geographic", "nowhere", "south up"],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_areas_are_those_of_the_pixels(tmp_path: Path, crs: str | None, transform: Affine) -> None:
    labels = blobs(40, 30)
    write([save_map(tmp_path / "map.tif", labels, transform, crs)], tmp_path / "map.parquet")
    assert_polygons_of(labels, transform, tmp_path / "map.parquet")
    columns, _ = read(tmp_path / "map.parquet")
    areas = row_areas_m2(crs and CRS.from_user_input(crs), transform, 40)
    for label in (0, 1, 2, 7):
        own = np.equal(columns["label"], label)
        if areas is None:
            assert np.array(columns["area_px"])[own].sum() == np.count_nonzero(labels == label)
        else:
            expected = (areas[:, None] * (labels == label)).sum()
            assert np.array(columns["area_m2"])[own].sum() == pytest.approx(expected, rel=1e-9)


def test_small_regions_go_to_their_neighbours(tmp_path: Path) -> None:
    labels = blobs(60, 60)
    write([save_map(tmp_path / "map.tif", labels)], tmp_path / "map.gpkg", min_area_m2=450)
    columns, found = read(tmp_path / "map.gpkg")
    assert sum(columns["area_m2"]) == pytest.approx(100 * np.count_nonzero(labels != 255))
    assert shapely.coverage_is_valid(found)
    tree = shapely.STRtree(found)
    small = np.flatnonzero(np.array(columns["area_m2"]) < 450)
    for index in small:  # these touch others at most at a corner
        for other in tree.query(found[index], "touches"):
            assert found[index].intersection(found[other]).length == 0
    whole = write([tmp_path / "map.tif"], tmp_path / "whole.gpkg")
    assert len(found) < whole / 2


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=14),
        elements=st.sampled_from([0, 1, 255]),
        fill=st.nothing(),
    ),
    tolerance_m=st.sampled_from([1.0, 9.0, 15.0, 40.0]),
    transform=st.sampled_from([PLACE, PLACE @ Affine.scale(3, 1), PLACE @ Affine.rotation(20)]),
)
def test_simple_borders_stay_common(tmp_path: Path, labels: Labels, tolerance_m: float, transform: Affine) -> None:
    path = save_map(tmp_path / "map.tif", labels, transform)
    count = write([path], tmp_path / "exact.parquet")
    assert write([path], tmp_path / "map.parquet", simplify_m=tolerance_m) == count
    (exact_columns, exact), (columns, found) = read(tmp_path / "exact.parquet"), read(tmp_path / "map.parquet")
    assert columns["label"] == exact_columns["label"]
    assert shapely.is_valid(found).all()
    assert shapely.coverage_is_valid(found)
    assert set(map(tuple, shapely.get_coordinates(found))) <= set(map(tuple, shapely.get_coordinates(exact)))
    np.testing.assert_allclose(columns["area_m2"], shapely.area(found), rtol=1e-9)
    assert shapely.get_num_coordinates(found).sum() <= shapely.get_num_coordinates(exact).sum()


def test_a_staircase_becomes_a_line(tmp_path: Path) -> None:
    labels = np.tri(60, dtype=np.uint8)
    write([save_map(tmp_path / "map.tif", labels)], tmp_path / "map.gpkg", simplify_m=12)
    columns, found = read(tmp_path / "map.gpkg")
    assert shapely.get_num_coordinates(found).max() < 20
    assert sum(columns["area_m2"]) == pytest.approx(100 * labels.size, rel=0.01)


def test_a_map_of_nodata_is_a_file_without_polygons(tmp_path: Path) -> None:
    path = save_map(tmp_path / "map.tif", np.full((5, 5), 255, np.uint8))
    for suffix in (".gpkg", ".fgb", ".parquet"):
        assert write([path], tmp_path / f"map{suffix}", min_area_m2=300, simplify_m=10) == 0
        assert len(read(tmp_path / f"map{suffix}")[1]) == 0


@pytest.mark.parametrize(
    ("other", "options", "error", "words"),
    [
        ({}, {"target": "map.shp"}, ConfigError, r"map\.shp ends in \.shp, expected \.gpkg"),
        ({}, {"target": "map"}, ConfigError, "no suffix"),
        ({}, {"min_area_m2": 0.0}, ConfigError, "least area is 0, expected more than 0"),
        ({}, {"simplify_m": -2.0}, ConfigError, "tolerance of the borders is -2, expected more than 0"),
        ({"crs": WGS84}, {}, RasterError, r"b\.tif has the CRS EPSG:4326, expected EPSG:32633 as .*a\.tif has; reproject"),
        ({"labels": np.full((4, 4), 9, np.uint8)}, {}, RasterError, "has the label 9, expected 0, 1, 2, 7"),
        (
            {"labels": np.zeros((4, 4), np.int16)},
            {},
            RasterError,
            "1 band of type int16 and nodata 255.*, expected a class map",
        ),
        ({"nodata": 0}, {}, RasterError, "expected a class map: one band of type uint8 with nodata 255"),
    ],
)
def test_what_cannot_be_written_is_said(
    tmp_path: Path, other: dict[str, Any], options: dict[str, Any], error: type[AutoregError], words: str
) -> None:
    maps = [save_map(tmp_path / "a.tif", blobs(9, 9)), save_map(tmp_path / "b.tif", **({"labels": blobs(4, 4)} | other))]
    out = tmp_path / "out"
    out.mkdir()
    target = out / options.get("target", "map.gpkg")
    with pytest.raises(error, match=words):
        write(maps, target, **{name: value for name, value in options.items() if name != "target"})
    assert list(out.iterdir()) == []


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_maps_that_lie_nowhere_have_no_metres_and_no_company(tmp_path: Path) -> None:
    path = save_map(tmp_path / "map.tif", blobs(9, 9), Affine.identity(), None)
    for options in ({"min_area_m2": 5.0}, {"simplify_m": 5.0}):
        with pytest.raises(ConfigError, match=r"map\.tif does not say how large its pixels are on the ground"):
            write([path], tmp_path / "map.gpkg", **options)
    with pytest.raises(RasterError, match="no CRS, expected one to put 2 maps in one file"):
        write([path, path], tmp_path / "map.gpkg")
    with pytest.raises(ConfigError, match="no maps"):
        write([], tmp_path / "map.gpkg")
    points = [rasterio.control.GroundControlPoint(row, col, 10 + col / 1e3, 50) for row in (0, 9) for col in (0, 9)]
    save_raster(path, blobs(9, 9)[None], nodata=255, gcps=points, crs=WGS84)
    with pytest.raises(RasterError, match="placed by ground control points"):
        write([path], tmp_path / "map.gpkg")


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".parquet"])
def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path, suffix: str) -> None:
    path = damage_raster(save_map(tmp_path / "map.tif", noise(1, 600, 600)[0] % 3))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DamagedRasterError, match=r"map\.tif is damaged"):
        write([path], out / f"map{suffix}")
    assert list(out.iterdir()) == []
    (out / f"map{suffix}").write_text("precious")
    with pytest.raises(OutputError, match="--overwrite"):
        write([path], out / f"map{suffix}", overwrite=False)
    with pytest.raises(DamagedRasterError):
        write([path], out / f"map{suffix}")
    assert (out / f"map{suffix}").read_text() == "precious"

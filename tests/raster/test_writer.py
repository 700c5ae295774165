import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.enums import ColorInterp
from rio_cogeo.cogeo import cog_validate

from autoreg.errors import OutputError, RasterError
from autoreg.raster.palette import Colour
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from autoreg.raster.writer import MapFile, MapWriter, write_maps
from conftest import noise, save_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@contextlib.contextmanager
def write_labels(
    path: Path,
    *,
    like: RasterReader,
    colours: dict[int, Colour],
    tags: dict[str, str],
    overwrite: bool,
    resume: bool = False,
) -> Iterator[MapWriter]:
    files = [MapFile(path, ("class",), colours=colours)]
    with write_maps(files, like=like, tags=tags, job=bytes(32), overwrite=overwrite, resume=resume) as writer:
        yield writer


def test_writes_a_valid_cog_at_the_same_place(tmp_path: Path) -> None:
    place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)}
    source = save_raster(tmp_path / "source.tif", noise(1, 700, 1100), **place)
    labels = (noise(1, 700, 1100, seed=1)[0] % 4).astype(np.uint8)
    labels[:40] = 255
    target = tmp_path / "map.tif"
    colours = {0: (1, 2, 3), 1: (4, 5, 6), 3: (255, 0, 7)}
    with (
        RasterReader(source) as raster,
        write_labels(target, like=raster, colours=colours, tags={"A": "b"}, overwrite=False) as out,
    ):
        for col in (0, 512, 1024):
            out.write([labels[:, col : col + 512, None]], Window(0, col, 700, min(512, 1100 - col)))
    valid, errors, warnings = cog_validate(target, strict=True)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(target) as dataset:
        np.testing.assert_array_equal(dataset.read(1), labels)
        assert dataset.crs == place["crs"]
        assert dataset.transform == place["transform"]
        assert dataset.nodata == 255
        assert dataset.dtypes == ("uint8",)
        assert dataset.tags()["A"] == "b"
        assert dataset.colorinterp == (ColorInterp.palette,)
        table = dataset.colormap(1)
        assert {label: colour[:3] for label, colour in table.items() if any(colour[:3])} == colours
        assert not (dataset.read_masks(1) == 0)[40:].any()
        assert (dataset.read_masks(1) == 0)[:40].all()
        # Overviews hold labels that occur, not averages.
        overview = dataset.read(1, out_shape=(350, 550))
        assert set(np.unique(overview)) <= {0, 1, 2, 3, 255}
        assert dataset.overviews(1) != []


def test_ground_control_points_are_kept(tmp_path: Path) -> None:
    points = [
        rasterio.control.GroundControlPoint(row, col, 10 + col / 1e3, 50 - row / 1e3) for row in (0, 30) for col in (0, 40)
    ]
    source = save_raster(tmp_path / "source.tif", noise(1, 30, 40), gcps=points, crs="EPSG:4326")
    target = tmp_path / "map.tif"
    with RasterReader(source) as raster, write_labels(target, like=raster, colours={}, tags={}, overwrite=False):
        pass
    with rasterio.open(target) as dataset:
        got, crs = dataset.gcps
        assert crs == "EPSG:4326"
        assert [(point.row, point.col, point.x, point.y) for point in got] == [(p.row, p.col, p.x, p.y) for p in points]
        assert (dataset.read(1) == 255).all()  # what was never written is nodata


def test_nothing_is_left_of_a_map_that_failed(tmp_path: Path) -> None:
    source = save_raster(tmp_path / "source.tif", noise(1, 30, 40))
    folder = tmp_path / "out"
    folder.mkdir()
    with (
        RasterReader(source) as raster,
        pytest.raises(RasterError),
        write_labels(folder / "map.tif", like=raster, colours={}, tags={}, overwrite=False) as out,
    ):
        out.write([np.zeros((30, 40, 1), np.uint8)], Window(0, 0, 30, 40))
        raise RasterError
    assert list(folder.iterdir()) == []


def test_an_existing_map_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    source = save_raster(tmp_path / "source.tif", noise(1, 30, 40))
    target = tmp_path / "map.tif"
    target.write_text("precious")
    with (
        RasterReader(source) as raster,
        pytest.raises(OutputError, match=r"map\.tif exists; use --overwrite"),
        write_labels(target, like=raster, colours={}, tags={}, overwrite=False),
    ):
        pass
    assert target.read_text() == "precious"
    (tmp_path / "map.tif.aux.xml").write_text("statistics of the old map")
    with RasterReader(source) as raster, write_labels(target, like=raster, colours={}, tags={}, overwrite=True):
        pass
    assert not (tmp_path / "map.tif.aux.xml").exists()
    assert cog_validate(target, strict=True)[0]

"""Maps of rasters that touch: each is a part of the map of all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio import Affine
from rio_cogeo.cogeo import cog_validate

from autoreg import Engine, TilingOptions, load_engine, segment_array, segment_raster
from autoreg.errors import RasterError
from autoreg.raster.rasters import Rasters
from autoreg.raster.window import Window
from autoreg.runtime.pipeline import Outputs
from autoreg.runtime.segment import segment_part
from conftest import EDGE, Models, damage_raster, needs_edge, noise, save_raster

PLACE = Affine(2, 0, 500_000, 0, -2, 5_000_000)


def cut(image: NDArray[np.uint8], rows: list[int], cols: list[int], folder: Path, **profile: Any) -> dict[Path, Window]:
    """Save the pieces of an image that is cut at ``rows`` and ``cols``."""
    pieces = {}
    height, width = image.shape[1:]
    for top, bottom in zip([0, *rows], [*rows, height], strict=True):
        for left, right in zip([0, *cols], [*cols, width], strict=True):
            window = Window(top, left, bottom - top, right - left)
            path = folder / f"{top}_{left}.tif"
            place = PLACE @ Affine.translation(left, top)
            save_raster(path, image[:, *window.slices], crs="EPSG:32633", transform=place, **profile)
            pieces[path] = window
    return pieces


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as dataset:
        return np.asarray(dataset.read())


@given(
    seed=st.integers(0, 99),
    size=st.tuples(st.integers(3, 260), st.integers(3, 260)),
    cuts=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    tile_px=st.integers(62, 200),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_maps_of_the_pieces_are_those_of_the_whole(
    random_engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    size: tuple[int, int],
    cuts: tuple[float, float, float],
    tile_px: int,
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    height, width = size
    image = noise(2, height, width, seed)
    rows = [1 + int(cuts[0] * (height - 2))]
    cols = sorted({1 + int(share * (width - 2)) for share in cuts[1:]})
    pieces = cut(image, rows, cols, folder)
    expected = segment_array(random_engine, image)
    for path, window in pieces.items():
        target = folder / f"map_{path.name}"
        options = TilingOptions(tile_px, 2)
        segment_raster(random_engine, path, target, neighbours=[other for other in pieces if other != path], options=options)
        np.testing.assert_array_equal(read(target)[0], expected[window.slices])
    with Rasters(list(pieces), bands=2) as rasters:
        segment_part(random_engine, rasters.whole(), folder / "mosaic.tif")
    np.testing.assert_array_equal(read(folder / "mosaic.tif")[0], expected)
    assert cog_validate(folder / "mosaic.tif", strict=True)[0] or width == 1
    with rasterio.open(folder / "mosaic.tif") as dataset:
        assert dataset.transform == PLACE


def test_alone_a_piece_has_another_border(random_engine: Engine, tmp_path: Path) -> None:
    image = noise(2, 120, 200)
    pieces = cut(image, [], [100], tmp_path)
    first, second = pieces
    segment_raster(random_engine, first, tmp_path / "alone.tif")
    segment_raster(random_engine, first, tmp_path / "beside.tif", neighbours=[second])
    differing = read(tmp_path / "alone.tif")[0] != read(tmp_path / "beside.tif")[0]
    assert differing[:, 70:].any()
    radius = (random_engine.spec.receptive_field_px or 0) // 2 + 1
    assert not differing[:, : 100 - radius].any()


def test_gaps_are_nodata(random_engine: Engine, tmp_path: Path) -> None:
    pieces = cut(noise(2, 150, 150), [60], [70], tmp_path)
    corner = list(pieces)[:3]
    with Rasters(corner, bands=2) as rasters:
        segmented = segment_part(random_engine, rasters.whole(), tmp_path / "mosaic.tif", outputs=Outputs(confidence=True))
    labels, confidence = read(segmented.maps[0])[0], read(segmented.maps[1])[0]
    for found in (labels, confidence):
        assert (found[60:, 70:] == 255).all()
        assert (found != 255).sum() == 150 * 150 - 90 * 80
    assert segmented.pixels == 150 * 150 - 90 * 80
    assert segmented.class_areas_m2 is not None
    assert sum(segmented.class_areas_m2.values()) == pytest.approx(4 * segmented.pixels)


def test_a_damaged_neighbour_counts_as_missing(
    random_engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flat = noise(2, 300, 600) // 32
    pieces = cut(flat, [], [300], tmp_path, compress="deflate", blockysize=1)
    first, second = pieces
    damage_raster(second)
    with Rasters([first, second], bands=2) as rasters:
        segment_part(random_engine, rasters.part(0), tmp_path / "map.tif")
    assert f"{second} is damaged" in caplog.text
    assert (read(tmp_path / "map.tif")[0] != 255).all()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_does_not_fit_is_no_mosaic(tmp_path: Path) -> None:
    one = save_raster(tmp_path / "one.tif", noise(2, 30, 30), crs="EPSG:32633", transform=PLACE)
    far = save_raster(tmp_path / "far.tif", noise(2, 30, 30), crs="EPSG:32633", transform=PLACE @ Affine.translation(90, 0))
    nowhere = save_raster(tmp_path / "nowhere.tif", noise(2, 30, 30))
    with Rasters([one, far], bands=2) as rasters, pytest.raises(RasterError, match=r"far\.tif do not fit together"):
        rasters.whole()
    with (
        Rasters([one, nowhere], bands=2) as rasters,
        pytest.raises(RasterError, match=r"nowhere\.tif lies nowhere on Earth"),
    ):
        rasters.whole()
    with Rasters([one, tmp_path / "none.tif"], bands=2) as rasters, pytest.raises(RasterError, match="there is no file"):
        rasters.whole()


@needs_edge
def test_real_pieces_make_the_map_of_the_raster_that_they_were_cut_from(models: Models, tmp_path: Path) -> None:
    engine = load_engine(models(3, "uint8"))
    paths = [EDGE / f"rasterio_rgb{number}.tif" for number in range(1, 5)]  # they overlap by a pixel
    segment_raster(engine, EDGE / "rasterio_RGB.byte.tif", tmp_path / "whole.tif")
    expected = read(tmp_path / "whole.tif")[0]
    with Rasters(paths, bands=3) as rasters:
        segment_part(engine, rasters.whole(), tmp_path / "mosaic.tif")
        np.testing.assert_array_equal(read(tmp_path / "mosaic.tif")[0], expected)
        for index, (row, col) in enumerate(((0, 0), (0, 399), (399, 0), (399, 399))):
            segment_part(engine, rasters.part(index), tmp_path / "map.tif", overwrite=True)
            piece = read(tmp_path / "map.tif")[0]
            np.testing.assert_array_equal(piece, expected[row : row + piece.shape[0], col : col + piece.shape[1]])


def test_a_model_of_scenes_measures_the_mosaic(scene_engine: Engine, tmp_path: Path) -> None:
    image = noise(2, 200, 240)
    image[:, :, 120:] //= 2
    pieces = cut(image, [90], [130], tmp_path)
    expected = segment_array(scene_engine, image)
    for path, window in pieces.items():
        segment_raster(scene_engine, path, tmp_path / "map.tif", neighbours=list(pieces), overwrite=True)
        np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], expected[window.slices])

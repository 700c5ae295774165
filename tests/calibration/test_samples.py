from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from autoreg.calibration.samples import Samples, choose_samples
from autoreg.errors import RasterError
from autoreg.raster.reader import RasterReader
from autoreg.runtime.engine import Engine
from autoreg.runtime.segment import scene_reader
from conftest import noise, save_raster


def choose(paths: list[Path], engine: Engine, tiles: int = 40, tile_px: int = 32) -> tuple[Samples, Samples]:
    return choose_samples(paths, engine.spec, tiles=tiles, tile_px=tile_px)


@pytest.fixture
def rasters(tmp_path: Path) -> list[Path]:
    return [save_raster(tmp_path / f"{seed}.tif", noise(2, 200, 260, seed), nodata=0) for seed in range(3)]


def test_tiles_are_spread_over_the_rasters_and_overlap_nowhere(rasters: list[Path], random_engine: Engine) -> None:
    calibration, held_out = choose(rasters, random_engine)
    assert (len(calibration), len(held_out)) == (40, 10)
    tiles = calibration.tiles + held_out.tiles
    assert sorted(np.bincount([source for source, _ in tiles])) == [16, 17, 17]
    assert set(np.bincount([source for source, _ in held_out.tiles])) <= {3, 4}
    for (source, one), (other_source, other) in combinations(tiles, 2):
        assert source != other_source or min(one.intersection(other)[2:]) <= 0
    stride = random_engine.spec.stride
    assert all(window.row % stride == window.col % stride == 0 for _, window in tiles)
    assert max(window.bottom for _, window in tiles) > 160
    assert choose(rasters, random_engine) == (calibration, held_out)


def test_dark_and_bright_smooth_and_rough_places_are_all_there(tmp_path: Path, random_engine: Engine) -> None:
    pixels = np.full((2, 256, 256), 20, np.uint8)
    pixels[:, :, 128:] = 200
    rng = np.random.default_rng(0)
    pixels[:, 128:] += rng.integers(0, 50, (2, 128, 256)).astype(np.uint8)
    path = save_raster(tmp_path / "a.tif", pixels)
    for samples in choose([path], random_engine, tiles=16):
        kinds = {(image.mean() > 128, image.std(axis=(2, 3)).mean() > 10) for image, _ in samples}
        assert len(kinds) == (4 if len(samples) >= 8 else len(kinds)) >= 3


def test_places_without_data_are_avoided_and_filled_where_they_cannot_be(tmp_path: Path, random_engine: Engine) -> None:
    pixels = noise(2, 128, 128) // 2 + 1
    pixels[:, :, :40] = 0
    path = save_raster(tmp_path / "a.tif", pixels, nodata=0)
    calibration, held_out = choose([path], random_engine, tiles=8)
    assert all(valid.mean() >= 0.75 for samples in (calibration, held_out) for _, valid in samples)
    pixels[:, 1::2] = 0  # half of it is left
    save_raster(path, pixels, nodata=0)
    calibration, _ = choose([path], random_engine, tiles=8)
    for image, valid in calibration:
        assert 0 < valid.mean() <= 0.5
        assert (image[0][:, ~valid] == np.array(random_engine.spec.mean, np.float32)[:, None]).all()


def test_a_scene_is_rescaled_as_the_runtime_does_it(rasters: list[Path], scene_engine: Engine) -> None:
    calibration, _ = choose(rasters, scene_engine, tiles=6)
    for (source, window), (image, valid) in zip(calibration.tiles, calibration, strict=True):
        with RasterReader(rasters[source], bands=2) as raster:
            pixels, data = scene_reader(scene_engine.spec, raster.read, raster.height, raster.width)(window)
        np.testing.assert_array_equal(image[0][:, data], pixels[:, data])
        np.testing.assert_array_equal(valid, data)


def test_a_raster_smaller_than_a_tile_is_one(tmp_path: Path, random_engine: Engine) -> None:
    paths = [save_raster(tmp_path / f"{seed}.tif", noise(2, 21, 50, seed)) for seed in range(4)]
    calibration, held_out = choose(paths, random_engine, tile_px=64)
    stride = random_engine.spec.stride
    assert len(calibration) + len(held_out) == 4
    assert {image.shape for image, _ in calibration} == {(1, 2, -(-21 // stride) * stride, -(-50 // stride) * stride)}


def test_of_many_rasters_some_are_looked_at(tmp_path: Path, random_engine: Engine) -> None:
    paths = [save_raster(tmp_path / f"{seed}.tif", noise(2, 32, 32, seed)) for seed in range(20)]
    calibration, held_out = choose(paths, random_engine, tiles=4)
    assert (len(calibration), len(held_out)) == (4, 1)
    assert [path.name for path in paths[::4]] == [source.path.name for source in calibration.sources]


def test_some_of_the_tiles_are_evenly_chosen(rasters: list[Path], random_engine: Engine) -> None:
    calibration, _ = choose(rasters, random_engine)
    assert calibration.some(4).tiles == calibration.tiles[::10]
    assert calibration.some(100).tiles == calibration.tiles


def test_the_digest_is_of_the_pixels(rasters: list[Path], random_engine: Engine) -> None:
    calibration, held_out = choose(rasters, random_engine)
    before = calibration.digest()
    assert len({before, held_out.digest()}) == 2
    save_raster(rasters[1], noise(2, 200, 260, 9), nodata=0)
    assert choose(rasters, random_engine)[0].digest() != before


def test_rasters_that_do_not_fit_and_too_few_tiles_are_refused(tmp_path: Path, random_engine: Engine) -> None:
    grey = save_raster(tmp_path / "grey.tif", noise(1, 64, 64))
    with pytest.raises(RasterError, match=r"grey\.tif has 1 band .* but the model expects 2"):
        choose([grey], random_engine)
    empty = save_raster(tmp_path / "empty.tif", np.zeros((2, 64, 64), np.uint8), nodata=0)
    with pytest.raises(RasterError, match=r"have 0 tiles of 32 px with data, expected at least 2.*--tile-px"):
        choose([empty], random_engine)
    one = save_raster(tmp_path / "one.tif", noise(2, 64, 64))
    with pytest.raises(RasterError, match="have 1 tiles of 64 px"):
        choose([one], random_engine, tile_px=64)

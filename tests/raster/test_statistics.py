from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoreg.raster.reader import RasterReader
from autoreg.raster.statistics import Moments, match_scene
from autoreg.raster.window import Window
from conftest import noise, save_raster

MEAN, STD = np.array([50.0, -3.0]), np.array([20.0, 0.5])


def rescaled(image: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    def read(window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        return image[:, *window.slices], valid[window.slices]

    result = image.astype(np.float32)
    match_scene(read, *valid.shape, mean=MEAN, std=STD).apply(result)
    return result


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_merged_moments_are_those_of_all_pixels(sizes: list[int]) -> None:
    rng = np.random.default_rng(sum(sizes))
    parts = [rng.normal(1000, 3, (2, size, 3)) for size in sizes]
    merged = sum((Moments.of(part, np.ones(part.shape[1:], np.bool_)) for part in parts), start=Moments.none(2))
    whole = np.concatenate(parts, axis=1).reshape(2, -1)
    assert merged.count == whole.shape[1]
    if merged.count > 1:
        np.testing.assert_allclose(merged.mean, whole.mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(merged.std, whole.std(axis=1), rtol=1e-9)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_a_small_scene_gets_exactly_the_statistics_that_are_wanted(dtype: str) -> None:
    image = noise(2, 300, 700).astype(dtype)
    valid = noise(1, 300, 700, seed=1)[0] > 60
    result = rescaled(image, valid)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[:, valid].mean(axis=1, dtype=np.float64), MEAN, atol=1e-4)
    np.testing.assert_allclose(result[:, valid].std(axis=1, dtype=np.float64), STD, rtol=1e-5)


def test_a_band_that_does_not_vary_is_only_shifted_and_a_scene_without_data_stays() -> None:
    image = np.full((2, 30, 30), 7, np.uint8)
    image[1, :15] = 9
    valid = np.ones((30, 30), np.bool_)
    result = rescaled(image, valid)
    assert (result[0] == 50).all()
    np.testing.assert_allclose(np.unique(result[1]), [-3.5, -2.5])
    np.testing.assert_array_equal(rescaled(image, ~valid), image)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_large_scene_is_measured_at_64_places_spread_over_it(height: int, width: int) -> None:
    seen: list[Window] = []

    def read(window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        seen.append(window)
        return np.zeros((2, 1, 1), np.uint8), np.ones((1, 1), np.bool_)

    match_scene(read, height, width, mean=MEAN, std=STD)
    assert len(set(seen)) == len(seen) <= 64
    assert all(0 < window.height <= 256 and 0 < window.width <= 256 for window in seen)
    assert all(window.row % 256 == window.col % 256 == 0 for window in seen)
    assert (seen[0].row, seen[0].col, seen[-1].bottom, seen[-1].right) == (0, 0, height, width)
    if max(height, width) <= 2048:
        assert sum(window.height * window.width for window in seen) == height * width


def test_a_raster_is_measured_as_its_array(tmp_path: Path) -> None:
    image = noise(2, 300, 400)
    path = save_raster(tmp_path / "a.tif", image, nodata=0, tiled=True, blockxsize=64, blockysize=64)
    with RasterReader(path) as raster:
        _, valid = raster.read(Window(0, 0, 300, 400))
        measured = match_scene(raster.read, 300, 400, mean=MEAN, std=STD)
    result = image.astype(np.float32)
    measured.apply(result)
    np.testing.assert_array_equal(result, rescaled(image, valid))

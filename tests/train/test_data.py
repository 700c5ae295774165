from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from autoreg.errors import RasterError
from autoreg.train import data
from autoreg.train.data import Batch, estimate_normalisation, open_scenes, read_batches
from conftest import noise, save_raster


def batches(
    paths: list[Path], count: int, start: int = 0, crop_px: int = 16, batch_size: int = 4, seed: int = 0
) -> list[Batch]:
    scenes = open_scenes(paths, crop_px=crop_px)
    fill = np.full(len(scenes.bands), 9.0)
    stream = read_batches(scenes, crop_px=crop_px, batch_size=batch_size, fill=fill, seed=seed, start=start)
    return list(islice(stream, count))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_streaming_statistics_equal_those_of_all_valid_pixels(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "SUPERBLOCK_PX", 32)  # so that many blocks are merged
    images = [(noise(3, 70, 90, seed=seed) // 2 + 1 + 40 * seed).astype(dtype) for seed in range(2)]
    for image in images:
        image[:, :11, :30] = 0
    paths = [save_raster(tmp_path / f"{seed}.tif", image, nodata=0) for seed, image in enumerate(images)]
    mean, std = estimate_normalisation(open_scenes(paths, crop_px=16))
    pixels = np.concatenate([image[:, (image != 0).any(axis=0)] for image in images], axis=1).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=1), rtol=1e-12)


def test_a_constant_band_is_not_divided_by_zero(tmp_path: Path) -> None:
    path = save_raster(tmp_path / "a.tif", np.full((1, 20, 20), 7, np.uint8))
    mean, std = estimate_normalisation(open_scenes([path], crop_px=16))
    assert (mean.tolist(), std.tolist()) == ([7.0], [1.0])


def test_batches_are_crops_of_the_scenes(tmp_path: Path) -> None:
    image = np.arange(64 * 48, dtype=np.uint16).reshape(1, 64, 48)
    path = save_raster(tmp_path / "a.tif", image, tiled=True, blockxsize=16, blockysize=16)
    for images, valid in batches([path], 12):
        assert (images.shape, valid.shape) == ((4, 1, 16, 16), (4, 16, 16))
        assert valid.all()
        for crop in images:
            row, col = divmod(int(crop[0, 0, 0]), 48)
            np.testing.assert_array_equal(crop, image[:, row : row + 16, col : col + 16])


def test_every_pixel_can_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SUPERBLOCK_PX", 32)
    image = np.arange(70 * 90, dtype=np.uint16).reshape(1, 70, 90)
    path = save_raster(tmp_path / "a.tif", image, tiled=True, blockxsize=16, blockysize=16)
    seen = np.concatenate([images.ravel() for images, _ in batches([path], 300, crop_px=30)])
    assert len(np.unique(seen)) == image.size


def test_the_stream_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    paths = [save_raster(tmp_path / f"{seed}.tif", noise(2, 64, 64, seed=seed)) for seed in range(2)]
    all_of_them = batches(paths, 30)
    late = batches(paths, 9, start=21)
    for expected, got in zip(all_of_them[21:], late, strict=True):
        np.testing.assert_array_equal(expected.images, got.images)
    assert any((a.images != b.images).any() for a, b in zip(all_of_them, batches(paths, 30, seed=1), strict=True))


def test_pixels_without_data_are_filled_and_marked(tmp_path: Path) -> None:
    image = noise(2, 64, 64) // 2 + 1
    image[:, :, :20] = 0
    found = batches([save_raster(tmp_path / "a.tif", image, nodata=0)], 20)
    assert any(not valid.all() for _, valid in found)
    for images, valid in found:
        assert (images.transpose(0, 2, 3, 1)[~valid] == 9).all()
        assert (images.transpose(0, 2, 3, 1)[valid] != 0).all()
        assert valid.mean(axis=(1, 2)).min() >= 0.5


def test_scenes_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    base = save_raster(tmp_path / "base.tif", noise(3, 32, 32))
    bands = save_raster(tmp_path / "bands.tif", noise(2, 32, 32))
    dtype = save_raster(tmp_path / "dtype.tif", noise(3, 32, 32).astype(np.uint16))
    small = save_raster(tmp_path / "small.tif", noise(3, 32, 15))
    for path, message in (
        (bands, r"bands\.tif has 2 bands, but .*base\.tif has 3"),
        (dtype, r"dtype\.tif has pixels of type uint16, but .*base\.tif has uint8"),
        (small, r"small\.tif has 32 x 15 px, which is smaller than a crop of 16 px"),
    ):
        with pytest.raises(RasterError, match=message):
            open_scenes([base, path], crop_px=16)
    with pytest.raises(RasterError, match="no rasters"):
        open_scenes([], crop_px=16)


def test_scenes_without_data_are_refused(tmp_path: Path) -> None:
    path = save_raster(tmp_path / "a.tif", np.zeros((1, 32, 32), np.uint8), nodata=0)
    with pytest.raises(RasterError, match="none of the 1 rasters has a pixel with data"):
        estimate_normalisation(open_scenes([path], crop_px=16))
    with pytest.raises(RasterError, match="no crop of 16 px"):
        batches([path], 1)

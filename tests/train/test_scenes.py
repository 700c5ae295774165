import logging
from pathlib import Path

import numpy as np
import pytest
from rasterio.enums import ColorInterp

from autoreg.errors import RasterError
from autoreg.train import scenes
from autoreg.train.scenes import Scenes, estimate_normalisation, open_scenes
from conftest import damage_raster, noise, save_raster


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_streaming_statistics_equal_those_of_all_valid_pixels(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "SUPERBLOCK_PX", 32)  # so that many blocks are merged
    images = [(noise(3, 70, 90, seed=seed) // 2 + 1 + 40 * seed).astype(dtype) for seed in range(2)]
    for image in images:
        image[:, :11, :30] = 0
    paths = [save_raster(tmp_path / f"{seed}.tif", image, nodata=0) for seed, image in enumerate(images)]
    mean, std = estimate_normalisation(open_scenes(paths, crop_px=16))
    pixels = np.concatenate([image[:, (image != 0).any(axis=0)] for image in images], axis=1).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=1), rtol=1e-12)


def test_statistics_of_16_bit_reflectance_are_exact_with_saturated_clouds(tmp_path: Path) -> None:
    image = noise(2, 300, 300).astype(np.uint16) + 60_000
    image[:, :20] = 65_535
    mean, std = estimate_normalisation(open_scenes([save_raster(tmp_path / "a.tif", image)], crop_px=16))
    np.testing.assert_allclose(mean, image.mean(axis=(1, 2), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(std, image.std(axis=(1, 2), dtype=np.float64), rtol=1e-12)


def test_a_constant_band_is_not_divided_by_zero(tmp_path: Path) -> None:
    path = save_raster(tmp_path / "a.tif", np.full((1, 20, 20), 7, np.uint8))
    mean, std = estimate_normalisation(open_scenes([path], crop_px=16))
    assert (mean.tolist(), std.tolist()) == ([7.0], [1.0])


def test_an_even_sample_of_many_superblocks_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "SUPERBLOCK_PX", 16)
    monkeypatch.setattr(scenes, "_STATISTICS_SUPERBLOCKS", 6)
    paths = [save_raster(tmp_path / f"{size}.tif", noise(1, size, size)) for size in (16, 80, 160)]
    found = list(scenes._even_superblocks(open_scenes(paths, crop_px=16)))
    assert [index for index, _ in found] == [0, 1, 2, 2, 2, 2]  # 1, 25 and 100 super-blocks
    assert len({window for _, window in found[2:]}) == 4


def test_superblocks_are_whole_blocks_and_flat_where_the_file_has_strips() -> None:
    shapes = ((5000, 6000), (5000, 60_000), (5000, 6000), (300, 200), (9000, 9000))
    blocks = ((384, 256), (4, 60_000), (1, 500), (300, 200), (4096, 4096))
    opened = Scenes(tuple("abcde"), shapes, blocks, ("red",), "uint8")
    assert [opened.superblock_shape(index, 200) for index in range(5)] == [
        (1152, 1024),
        (256, 4096),
        (1024, 1500),
        (300, 200),
        (1024, 1024),
    ]
    assert opened.superblock_shape(1, 2000) == (2000, 4096)


def test_scenes_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    base = save_raster(tmp_path / "base.tif", noise(3, 32, 32))
    bands = save_raster(tmp_path / "bands.tif", noise(2, 32, 32))
    dtype = save_raster(tmp_path / "dtype.tif", noise(3, 32, 32).astype(np.uint16))
    for path, message in (
        (bands, r"bands\.tif has 2 bands, but .*base\.tif has 3"),
        (dtype, r"dtype\.tif has pixels of type uint16, but .*base\.tif has uint8"),
        (tmp_path / "typo.tif", r"there is no file .*typo\.tif"),
    ):
        with pytest.raises(RasterError, match=message):
            open_scenes([base, path], crop_px=16)
    with pytest.raises(RasterError, match="no rasters"):
        open_scenes([], crop_px=16)


def test_what_is_broken_or_too_small_is_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = tmp_path / "text.tif"
    text.write_text("not an image")
    small = save_raster(tmp_path / "small.tif", noise(3, 32, 15))
    good = [save_raster(tmp_path / f"{index}.tif", noise(3, 32, 32)) for index in range(20)]
    with caplog.at_level(logging.WARNING, logger="autoreg"):
        opened = open_scenes([text, *good[:10], small, *good[10:]], crop_px=16)
        opened.report_skipped()
    assert opened.paths == tuple(map(str, good))
    assert list(opened.skipped) == [str(text), str(small)]
    messages = [record.getMessage() for record in caplog.records if record.name == "autoreg"]
    assert len(messages) == 3
    assert "text.tif cannot be read as an image" in messages[0]
    assert "small.tif has 32 x 15 px, which is smaller than a crop of 16 px" in messages[1]
    assert messages[2].startswith("2 rasters were skipped")
    with pytest.raises(RasterError, match=r"none of the 2 rasters can be used; .*text\.tif cannot be read"):
        open_scenes([text, small], crop_px=16)
    with pytest.raises(RasterError, match=r"^\S*small\.tif has 32 x 15 px"):
        open_scenes([small], crop_px=16)


def test_the_first_raster_that_can_be_used_says_how_many_bands_there_are(tmp_path: Path) -> None:
    text = tmp_path / "text.tif"
    text.write_text("not an image")
    infrared = save_raster(tmp_path / "infrared.tif", noise(4, 32, 32), photometric="RGB", alpha="unspecified")
    opaque = np.full((4, 32, 32), 255, np.uint8)  # alone, its fourth band would be taken for alpha
    tagged = save_raster(tmp_path / "tagged.tif", opaque, photometric="RGB", alpha="yes")
    opened = open_scenes([text, infrared, tagged], crop_px=16)
    with opened.open(1) as raster:
        assert len(raster.bands) == 4
    assert ColorInterp.alpha.name not in opened.bands


def test_damaged_superblocks_are_left_out_of_the_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scenes, "SUPERBLOCK_PX", 64)
    image = noise(1, 256, 256)
    path = damage_raster(
        save_raster(tmp_path / "a.tif", image, compress="deflate", tiled=True, blockxsize=64, blockysize=64)
    )
    opened = open_scenes([path], crop_px=16)
    with caplog.at_level(logging.WARNING, logger="autoreg"):
        mean, _ = estimate_normalisation(opened)
    assert abs(mean[0] - image.mean()) < 10
    assert list(opened.skipped) == [str(path)]
    assert len(caplog.records) == 1
    assert "a.tif is damaged" in caplog.text


def test_scenes_without_data_are_refused(tmp_path: Path) -> None:
    path = save_raster(tmp_path / "a.tif", np.zeros((1, 32, 32), np.uint8), nodata=0)
    with pytest.raises(RasterError, match="none of the 1 rasters has a pixel with data"):
        estimate_normalisation(open_scenes([path], crop_px=16))

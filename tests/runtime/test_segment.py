import functools
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio import Affine
from rio_cogeo.cogeo import cog_validate

from autoreg import Engine, TilingOptions, load_engine, segment_array, segment_raster
from autoreg.errors import OutputError, RasterError
from autoreg.raster.tiling import round_up
from autoreg.runtime.engine import Images, Labels, Prediction
from conftest import noise, save_raster


def whole(engine: Engine, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One pass over the whole image, its last row and column repeated to a multiple of the stride."""
    height, width = image.shape[1:]
    stride = engine.spec.stride
    margin = [(0, 0), (0, round_up(height, stride) - height), (0, round_up(width, stride) - width)]
    return engine.label(np.pad(image, margin, mode="edge")[None].astype(np.float32))[0, :height, :width]


@functools.cache
def large() -> NDArray[np.uint8]:
    return noise(2, 400, 400)


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    corner=st.integers(0, 100),
    tile_px=st.integers(60, 320),
    batch_size=st.integers(1, 5),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tiled_labels_equal_those_of_one_pass(
    random_engine: Engine, height: int, width: int, corner: int, tile_px: int, batch_size: int
) -> None:
    image = large()[:, corner : corner + height, corner : corner + width]
    tiled = segment_array(random_engine, image, options=TilingOptions(tile_px, batch_size))
    assert (tiled != whole(random_engine, image)).sum() == 0


def test_the_test_model_uses_all_its_classes(random_engine: Engine) -> None:
    shares = np.bincount(whole(random_engine, large()).ravel(), minlength=4) / 400**2
    assert shares.min() > 0.01


def test_a_raster_gives_the_labels_of_its_array(random_engine: Engine, tmp_path: Path) -> None:
    image = noise(2, 333, 457, seed=7)
    image[:, 100:150, :60] = 0
    image = np.where(
        (np.arange(457) < 60) & (np.arange(333)[:, None] >= 100) & (np.arange(333)[:, None] < 150), image, image | 1
    )
    place = {"crs": "EPSG:32633", "transform": Affine(2, 0, 0, 0, -2, 1000), "nodata": 0}
    source = save_raster(tmp_path / "source.tif", image, tiled=True, blockxsize=128, blockysize=128, **place)
    target = tmp_path / "map.tif"
    seen: list[tuple[int, int]] = []
    options = TilingOptions(tile_px=128, batch_size=3)
    segment_raster(random_engine, source, target, options=options, progress=lambda done, total: seen.append((done, total)))
    with rasterio.open(target) as dataset:
        labels = dataset.read(1)
        assert dataset.crs == "EPSG:32633"
        assert dataset.transform == place["transform"]
        assert dataset.tags()["AUTOREG_MODEL_SHA256"] == random_engine.model_digest
        assert dataset.tags()["AUTOREG_PRECISION"] == "fp32"
    valid = (image != 0).any(axis=0)
    np.testing.assert_array_equal(labels, segment_array(random_engine, image, valid))
    np.testing.assert_array_equal(labels == 255, ~valid)
    assert seen[-1] == (333 * 457, 333 * 457)
    assert cog_validate(target, strict=True)[0]


def test_pixels_without_data_do_not_matter_whatever_they_hold(random_engine: Engine) -> None:
    image = noise(2, 90, 90).astype(np.float32)
    valid = np.ones((90, 90), np.bool_)
    valid[20:60, 30:50] = False
    other = image.copy()
    other[:, ~valid] = np.nan
    np.testing.assert_array_equal(segment_array(random_engine, image, valid), segment_array(random_engine, other))


def test_tiles_that_share_a_window_do_not_share_their_nodata(random_engine: Engine) -> None:
    image = noise(2, 40, 520)
    valid = np.zeros((40, 520), np.bool_)
    valid[:, 514:] = True  # all of it in the second core; the window of both is the whole image
    assert (segment_array(random_engine, image, valid) != 255).sum() == 40 * 6


def test_a_raster_that_does_not_fit_is_refused(random_engine: Engine, tmp_path: Path) -> None:
    three = save_raster(tmp_path / "three.tif", noise(3, 20, 20))
    wide = save_raster(tmp_path / "wide.tif", noise(2, 20, 20).astype(np.uint16))
    with pytest.raises(RasterError, match=r"three\.tif has 3 bands .* the model expects 2 \(band1, band2\)"):
        segment_raster(random_engine, three, tmp_path / "map.tif")
    with pytest.raises(RasterError, match=r"wide\.tif has pixels of type uint16, but the model was trained on uint8"):
        segment_raster(random_engine, wide, tmp_path / "map.tif")
    with pytest.raises(RasterError, match=r"shape \(3, 20, 20\), expected \(2, height, width\)"):
        segment_array(random_engine, noise(3, 20, 20))
    good = save_raster(tmp_path / "good.tif", noise(2, 20, 20))
    with pytest.raises(OutputError, match=r"there is no folder .*missing"):
        segment_raster(random_engine, good, tmp_path / "missing" / "map.tif")
    assert not list(tmp_path.glob("*map*"))


def test_a_trained_model_segments_its_scenes(model: Path, scenes: list[Path], tmp_path: Path) -> None:
    segment_raster(load_engine(model), scenes[0], tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as labels, rasterio.open(scenes[0]) as scene:
        np.testing.assert_array_equal(labels.read(1) == 255, (scene.read() == 0).all(axis=0))


def test_a_model_that_normalises_scenes_sees_no_difference_in_light(scene_engine: Engine, random_engine: Engine) -> None:
    assert scene_engine.spec.normalisation == "scene"
    dark = noise(2, 200, 200) // 3
    bright = dark * 2 + 60
    labels = [segment_array(scene_engine, image) for image in (dark, bright)]
    assert (labels[0] == labels[1]).mean() > 0.999
    assert len(np.unique(labels[0])) == 4
    assert (segment_array(random_engine, dark) == segment_array(random_engine, bright)).mean() < 0.9


def test_a_model_that_normalises_scenes_does_not_depend_on_the_tiling(scene_engine: Engine, tmp_path: Path) -> None:
    image = noise(2, 333, 457) // 2 + 30
    image[:, :40] = 0
    valid = (image != 0).any(axis=0)
    expected = segment_array(scene_engine, image, valid, options=TilingOptions(tile_px=600))
    place = {"crs": "EPSG:32633", "transform": Affine(2, 0, 0, 0, -2, 1000)}
    source = save_raster(tmp_path / "source.tif", image, nodata=0, tiled=True, blockxsize=64, blockysize=64, **place)
    for tile_px, batch_size in ((72, 1), (128, 3), (None, 1)):
        options = TilingOptions(tile_px, batch_size)
        np.testing.assert_array_equal(segment_array(scene_engine, image, valid, options=options), expected)
        segment_raster(scene_engine, source, tmp_path / "map.tif", options=options, overwrite=True)
        with rasterio.open(tmp_path / "map.tif") as dataset:
            np.testing.assert_array_equal(dataset.read(1), expected)


class InterruptedEngine:
    """Another engine, until somebody presses Ctrl-C at its fifth call."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.spec, self.model_digest, self.device, self.lanes = engine.spec, engine.model_digest, engine.device, 2
        self.calls = 0

    def predict(self, images: Images) -> Prediction:
        return self._engine.predict(images)

    def label(self, images: Images) -> Labels:
        self.calls += 1
        if self.calls == 5:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)  # long enough for an interruption to arrive in the meantime
        return self._engine.label(images)


def test_ctrl_c_ends_within_a_tile(random_engine: Engine) -> None:
    engine = InterruptedEngine(random_engine)
    with pytest.raises(KeyboardInterrupt):
        segment_array(engine, large(), options=TilingOptions(tile_px=80))
    assert 5 <= engine.calls <= 5 + engine.lanes, "only what had begun went on, in each lane"

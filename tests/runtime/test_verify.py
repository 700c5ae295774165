"""Two engines on the same tiles: what is compared, what is drawn, and what cannot be compared."""

import dataclasses
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from autoreg.errors import ConfigError, RasterError
from autoreg.raster.palette import unnamed_classes
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from autoreg.runtime import verify
from autoreg.runtime.engine import Engine, Images, Labels, Prediction
from autoreg.runtime.parity import Tile, check_comparable, compare_engines
from autoreg.runtime.verify import draw_difference, raster_tiles, sample_tiles
from autoreg.spec import ModelSpec
from conftest import noise, save_raster

GAP_PX = 8


@dataclasses.dataclass(frozen=True)
class Shifted:
    """Another engine whose labels are one cluster further in the top left ``px`` x ``px`` pixels of each tile."""

    engine: Engine
    px: int
    model_digest: str = ""
    device: str = "numpy"
    lanes: int = 1

    @property
    def spec(self) -> ModelSpec:
        return self.engine.spec

    def label(self, images: Images) -> Labels:
        return self.predict(images).labels

    def predict(self, images: Images) -> Prediction:
        labels, logits = self.engine.predict(images)
        labels[:, : self.px, : self.px] = (labels[:, : self.px, : self.px] + 1) % self.spec.clusters
        return Prediction(labels, logits)


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    """Noise whose sides are no multiples of a stride, without data in its first 20 rows."""
    pixels = noise(2, 101, 150)
    pixels[:, :20] = 0
    pixels[:, 20:] += pixels[:, 20:] == 0
    return save_raster(tmp_path / "a.tif", pixels, nodata=0)


def test_an_engine_says_what_it_says(random_engine: Engine, raster: Path) -> None:
    spec = random_engine.spec
    parity, worst = compare_engines(random_engine, random_engine, raster_tiles([raster], spec, spec))
    assert (parity.agreement, parity.clear_agreement, parity.max_probability_difference) == (1.0, 1.0, 0.0)
    assert parity.pixels == 81 * 150
    assert 0 < parity.clear_pixels < parity.pixels
    assert {value for value in parity.iou if value is not None} == {1.0}
    assert not worst.differing.any()


def test_figures_of_labels_that_differ_in_a_corner(random_engine: Engine) -> None:
    image = noise(2, 64, 64).astype(np.float32)
    tiles = [Tile("dull", image, np.zeros((64, 64), np.bool_)), *sample_tiles(image[None], random_engine.spec)]
    parity, worst = compare_engines(random_engine, Shifted(random_engine, 16), tiles)
    assert parity.agreement == 1 - 16**2 / 64**2
    assert parity.pixels == 64**2
    labels = random_engine.label(image[None])[0]
    changed = labels.copy()
    changed[:16, :16] = (changed[:16, :16] + 1) % random_engine.spec.clusters
    for cluster, iou in enumerate(parity.iou):
        one, other = labels == cluster, changed == cluster
        assert iou == ((one & other).sum() / (one | other).sum() if (one | other).any() else None)
    assert worst.tile.place == "sample crop 1"
    assert np.array_equal(worst.differing, labels != changed)
    assert parity.max_probability_difference == 0.0


@pytest.mark.parametrize("side_px", [32, 40, 512])
def test_rasters_are_cut_into_tiles_that_count_each_pixel_once(random_engine: Engine, raster: Path, side_px: int) -> None:
    spec = random_engine.spec
    tiles = list(raster_tiles([raster, raster], spec, dataclasses.replace(spec, stride=8), most_px=side_px))
    assert sum(int(tile.valid.sum()) for tile in tiles) == 2 * 81 * 150
    assert {size % 8 for tile in tiles for size in tile.image.shape[1:]} == {0}
    assert max(size for tile in tiles for size in tile.image.shape[1:]) <= side_px
    first = tiles[0]
    assert (first.image[:, ~first.valid] == np.asarray(spec.fill, np.uint8)[:, None]).all()
    with RasterReader(raster) as opened:
        _, valid = opened.read(Window(0, 0, *first.valid.shape))
    assert not (first.valid & ~valid).any()


def test_scenes_are_rescaled_as_the_model_wants_them(scene_engine: Engine, raster: Path) -> None:
    spec = scene_engine.spec
    (tile,) = raster_tiles([raster], spec, spec)
    seen = tile.image[:, tile.valid]
    assert seen.mean(axis=1) == pytest.approx(spec.mean, rel=1e-3)
    assert seen.std(axis=1) == pytest.approx(spec.std, rel=1e-3)


def test_two_tiles_are_in_memory_at_most_and_the_worst(random_engine: Engine) -> None:
    alive: list[weakref.ref[Images]] = []

    def tiles() -> Iterator[Tile]:
        for seed in range(8):
            assert sum(image() is not None for image in alive) <= 2
            image = noise(2, 32, 32, seed).astype(np.float32)
            alive.append(weakref.ref(image))
            yield Tile(str(seed), image, np.ones((32, 32), np.bool_))
            del image

    found = compare_engines(random_engine, Shifted(random_engine, 8), tiles())
    assert found.parity.pixels == 8 * 32 * 32


def test_tiles_are_small_where_there_are_many_clusters_or_the_model_looks_at_it_all(random_engine: Engine) -> None:
    spec = random_engine.spec
    assert verify._tile_px(spec, spec, 512) == 512
    many = dataclasses.replace(spec, classes=unnamed_classes(255))
    assert verify._tile_px(many, dataclasses.replace(many, stride=64), 512) == 128
    assert verify._tile_px(spec, dataclasses.replace(spec, receptive_field_px=None), 512) == spec.crop_px


def test_the_picture_shows_the_difference_in_red(random_engine: Engine, raster: Path) -> None:
    spec = random_engine.spec
    _, worst = compare_engines(random_engine, Shifted(random_engine, 40), raster_tiles([raster], spec, spec))
    picture = draw_difference(worst, spec.bands, spec.clusters)
    height, width = worst.differing.shape
    assert picture.shape == (3, height, 4 * width + 3 * GAP_PX)
    image, one, other, marked = (picture[:, :, start : start + width] for start in range(0, 4 * width, width + GAP_PX))
    red = (marked == np.array([214, 0, 0])[:, None, None]).all(axis=0)
    assert np.array_equal(red, worst.differing)
    assert red.sum() == 20 * 40  # of 40 rows, 20 are without data
    assert np.array_equal((one != other).any(axis=0), worst.differing)
    assert (image[:, :20] == 255).all()


def test_what_cannot_be_compared_is_refused_in_a_sentence(random_engine: Engine, raster: Path, tmp_path: Path) -> None:
    spec = random_engine.spec
    scene = dataclasses.replace(spec, normalisation="scene")
    for one, other, message in (
        (spec, dataclasses.replace(spec, bands=("red", "nir")), "bands of the first is band1, band2 and of the second red"),
        (
            spec,
            dataclasses.replace(spec, classes=spec.classes[:-1]),
            "number of clusters of the first is 4 and of the second",
        ),
        (spec, dataclasses.replace(spec, dtype="uint16"), "type of pixels of the first is uint8"),
        (spec, scene, "normalisation of the first is global and of the second scene"),
        (scene, dataclasses.replace(scene, mean=(1.0, 2.0)), "mean of the bands"),
        (scene, dataclasses.replace(scene, std=(1.0, 2.0)), "deviation of the bands"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_comparable(one, other)
    check_comparable(spec, dataclasses.replace(spec, mean=(1.0, 2.0)))  # the graph holds its own
    three = save_raster(tmp_path / "three.tif", noise(3, 40, 40))
    with pytest.raises(RasterError, match=r"three\.tif has 3 bands"):
        next(raster_tiles([raster, three], spec, spec))
    empty = save_raster(tmp_path / "empty.tif", np.zeros((2, 40, 40), np.uint8), nodata=0)
    with pytest.raises(RasterError, match="no pixel with data"):
        compare_engines(random_engine, random_engine, raster_tiles([empty], spec, spec))

"""A model that looks at its whole tile: what blending promises, against the definition written out."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoreg import ModelSpec, TilingOptions, segment_array, segment_raster
from autoreg.raster import blending
from autoreg.raster.gdal import open_dataset
from autoreg.raster.palette import unnamed_classes
from autoreg.raster.tiling import round_up
from autoreg.runtime.engine import Images, Labels, Prediction
from autoreg.runtime.probabilities import probabilities
from autoreg.spec import MapClass
from conftest import noise, save_raster

CLASSES = 5
MIXING = np.random.default_rng(0).normal(size=(CLASSES, 2)).astype(np.float32) / 20


@dataclasses.dataclass(frozen=True)
class MeanEngine:
    """Logits of each cell from the cell's mean and ``influence`` times the whole image's mean."""

    stride: int
    influence: float
    model_digest: str = "0" * 64
    device: str = "numpy"
    lanes: int = 2

    @property
    def spec(self) -> ModelSpec:
        classes = unnamed_classes(CLASSES)
        field = None  # also where the influence is 0: the spec decides how to cut, not what the model does
        scale = (0.0, 0.0), (1.0, 1.0)
        return ModelSpec(("a", "b"), "uint8", classes, self.stride, field, 32, *scale, "fp32", "0" * 64, 1.0, "0.1.0")

    def predict(self, images: Images) -> Prediction:
        logits = np.stack([self._logits(image) for image in images])
        return Prediction(probabilities(logits, self.stride).argmax(axis=1).astype(np.uint8), logits)

    def label(self, images: Images) -> Labels:
        return self.predict(images).labels

    def _logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        bands, height, width = image.shape
        means = image.reshape(bands, height // self.stride, self.stride, width // self.stride, self.stride).mean(axis=(2, 4))
        seen = means - 127 + self.influence * (image.mean(axis=(1, 2)) - 127)[:, None, None]
        return np.asarray(np.einsum("kb,bhw->khw", MIXING, seen), np.float32)


def extended(image: NDArray[np.uint8], stride: int) -> NDArray[np.float32]:
    margin = [(0, 0), *((0, round_up(size, stride) - size) for size in image.shape[1:])]
    return np.pad(image, margin, mode="edge").astype(np.float32)


def starts(size: int, tile: int, step: int) -> list[int]:
    found = [0]
    while found[-1] + tile < size:
        found.append(min(found[-1] + step, size - tile))
    return found


def blended_slowly(engine: MeanEngine, image: NDArray[np.uint8], tile_px: int) -> tuple[NDArray[np.float64], ...]:
    """The definition: mean probabilities (K, H, W), and the weighted share of tiles that disagree with them (H, W)."""
    stride = engine.stride
    pixels = extended(image, stride)
    side = tile_px // stride * stride
    step = max(side // 2 // stride, 1) * stride
    height, width = (min(side, size) for size in pixels.shape[1:])
    triangles = [np.minimum(np.arange(size) + 0.5, size - 0.5 - np.arange(size)) for size in (height, width)]
    weight = np.outer(*triangles)
    answers = []
    for row in starts(pixels.shape[1], height, step):
        for col in starts(pixels.shape[2], width, step):
            place = np.s_[row : row + height, col : col + width]
            labels, logits = engine.predict(pixels[None, :, *place])
            answers.append((place, labels[0], probabilities(logits, stride)[0].astype(np.float64)))
    total = np.zeros((CLASSES, *pixels.shape[1:]))
    weights, other = np.zeros(pixels.shape[1:]), np.zeros(pixels.shape[1:])
    for place, _, probs in answers:
        total[:, *place] += weight * probs
        weights[place] += weight
    blended = total.argmax(axis=0)
    for place, labels, _ in answers:
        other[place] += weight * (labels != blended[place])
    inside = np.s_[: image.shape[1], : image.shape[2]]
    return (total / weights)[:, *inside], (other / weights)[inside]


def assert_blended(engine: MeanEngine, image: NDArray[np.uint8], options: TilingOptions) -> NDArray[np.float64]:
    """Labels are those of the definition, up to rounding; gives the definition's dependence."""
    means, dependence = blended_slowly(engine, image, options.tile_px or engine.spec.crop_px)
    labels = segment_array(engine, image, options=options)
    chosen = np.take_along_axis(means, labels[None].astype(np.intp), axis=0)[0]
    assert (chosen >= means.max(axis=0) - 1e-5).all()
    assert (labels == means.argmax(axis=0)).mean() > 0.999
    return dependence


@given(
    height=st.integers(1, 100),
    width=st.integers(1, 100),
    stride=st.sampled_from([1, 2, 4]),
    tile_px=st.integers(4, 70),
    batch_size=st.integers(1, 5),
    core_px=st.integers(4, 60),
)
@settings(max_examples=40)
def test_labels_are_the_most_probable_of_the_weighted_mean(
    height: int, width: int, stride: int, tile_px: int, batch_size: int, core_px: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blending, "CORE_PX", core_px)
        patch.setattr(blending, "_STRIP_STEPS", 2)
        assert_blended(MeanEngine(stride, 2.0), noise(2, height, width), TilingOptions(tile_px, batch_size))


def test_the_default_tile_is_the_crop_and_batches_change_nothing() -> None:
    engine, image = MeanEngine(4, 2.0), noise(2, 530, 603)  # more than one core, two strips
    dependence = assert_blended(engine, image, TilingOptions())
    assert 0.01 < dependence.mean() < 0.5
    labels = segment_array(engine, image)
    np.testing.assert_array_equal(segment_array(engine, image, options=TilingOptions(32, 7)), labels)
    assert (segment_array(engine, image, options=TilingOptions(64)) != labels).any()


@pytest.mark.parametrize("tile_px", [5, 16, 33])
def test_a_local_model_gives_the_labels_of_one_pass(tile_px: int, tmp_path: Path) -> None:
    engine, image = MeanEngine(1, 0.0), noise(2, 120, 75)
    source = save_raster(tmp_path / "source.tif", image)
    segmented = segment_raster(engine, source, tmp_path / "map.tif", options=TilingOptions(tile_px, 3))
    with open_dataset(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), engine.label(image[None].astype(np.float32))[0])
    assert (segmented.pixels, segmented.tiling_dependent) == (120 * 75, 0.0)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_raster_that_fits_into_a_tile_is_one_pass(stride: int, tmp_path: Path) -> None:
    engine, image = MeanEngine(stride, 2.0), noise(2, 31, 21)
    segmented = segment_raster(engine, save_raster(tmp_path / "source.tif", image), tmp_path / "map.tif")
    with open_dataset(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), engine.label(extended(image, stride)[None])[0, :31, :21])
    assert segmented.tiling_dependent == 0.0


def test_a_raster_gives_the_labels_of_its_array_and_the_share_of_its_pixels_with_data(tmp_path: Path) -> None:
    engine, image = MeanEngine(4, 2.0), noise(2, 130, 157) | np.uint8(1)
    image[:, 20:70, 35:90] = 0
    valid = (image != 0).any(axis=0)
    source = save_raster(tmp_path / "source.tif", image, nodata=0)
    segmented = segment_raster(engine, source, tmp_path / "map.tif", options=TilingOptions(batch_size=2))
    labels = segment_array(engine, image, valid)
    with open_dataset(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), labels)
    np.testing.assert_array_equal(labels == 255, ~valid)
    _, dependence = blended_slowly(engine, image, 32)  # the bands' means are 0, what nodata holds
    assert segmented.pixels == valid.sum()
    assert segmented.tiling_dependent == pytest.approx(dependence[valid].mean(), abs=1e-4)
    assert segmented.tiling_dependent > 0.01


@dataclasses.dataclass(frozen=True)
class NamedEngine(MeanEngine):
    """The same model with two classes of several clusters."""

    @property
    def spec(self) -> ModelSpec:
        classes = (MapClass(3, "land", "#00ff00", (0, 2, 4)), MapClass(7, "water", "#0000ff", (1, 3)))
        return dataclasses.replace(super().spec, classes=classes)


def test_tiles_that_name_clusters_of_one_class_agree(tmp_path: Path) -> None:
    engine, image = NamedEngine(4, 2.0), noise(2, 130, 157)
    labels_of = np.array([3, 7, 3, 7, 3])
    pixels = extended(image, 4)
    classes: list[list[list[tuple[float, int]]]] = [[[] for _ in range(160)] for _ in range(132)]
    side = np.minimum(np.arange(32) + 0.5, 31.5 - np.arange(32))
    for row in starts(132, 32, 16):
        for col in starts(160, 32, 16):
            (clusters,) = engine.label(pixels[None, :, row : row + 32, col : col + 32])
            for (y, x), cluster in np.ndenumerate(clusters):
                classes[row + y][col + x].append((side[y] * side[x], int(labels_of[cluster])))
    blended = labels_of[segment_array(MeanEngine(4, 2.0), image)]
    labels = segment_array(engine, image)
    dependence = 0.0
    for (y, x), label in np.ndenumerate(labels):
        said = classes[y][x]
        agreed = {own for _, own in said}
        assert label == (agreed.pop() if len(agreed) == 1 else blended[y, x])
        dependence += sum(weight for weight, own in said if own != label) / sum(weight for weight, _ in said)
    segmented = segment_raster(engine, save_raster(tmp_path / "source.tif", image), tmp_path / "map.tif")
    assert segmented.tiling_dependent == pytest.approx(dependence / labels.size, abs=1e-6)
    by_cluster = segment_raster(MeanEngine(4, 2.0), tmp_path / "source.tif", tmp_path / "clusters.tif")
    assert 0.01 < segmented.tiling_dependent < by_cluster.tiling_dependent
    with open_dataset(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), labels)


def test_a_raster_without_data_depends_on_nothing(tmp_path: Path) -> None:
    source = save_raster(tmp_path / "source.tif", np.zeros((2, 70, 40), np.uint8), nodata=0)
    segmented = segment_raster(MeanEngine(2, 2.0), source, tmp_path / "map.tif")
    assert (segmented.pixels, segmented.tiling_dependent) == (0, 0.0)

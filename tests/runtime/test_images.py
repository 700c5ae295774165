"""What engines are shown, and in which type."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from autoreg import Engine, TilingOptions, segment_array
from autoreg.errors import EngineError
from autoreg.raster.window import Window
from autoreg.runtime.engine import Images, Labels, Prediction
from autoreg.runtime.images import to_image, to_uint8
from autoreg.runtime.segment import scene_reader
from autoreg.spec import ModelSpec
from conftest import noise

HOLE = np.s_[:, 3:9, 5:7]


@dataclasses.dataclass
class Watched:
    """An engine that keeps what it is shown."""

    engine: Engine
    seen: list[Images] = dataclasses.field(default_factory=list)
    model_digest: str = "0" * 64
    device: str = "a wrapper"
    lanes: int = 1

    @property
    def spec(self) -> ModelSpec:
        return self.engine.spec

    def label(self, images: Images) -> Labels:
        self.seen.append(images)
        return self.engine.label(images)

    def predict(self, images: Images) -> Prediction:
        self.seen.append(images)
        return self.engine.predict(images)


def valid_of(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    valid = np.ones(image.shape[1:], np.bool_)
    valid[HOLE[1:]] = False
    return valid


def test_bytes_stay_bytes_and_where_there_is_no_data_is_the_rounded_mean(random_engine: Engine) -> None:
    spec = dataclasses.replace(random_engine.spec, mean=(100.6, 254.6))
    image = noise(2, 20, 24)
    shown = to_image(image, valid_of(image), spec)
    expected = image.copy()
    expected[HOLE] = np.array([101, 255], np.uint8)[:, None, None]
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown, expected)
    floats = to_image(image.astype(np.float64) + 0.25, valid_of(image), spec)
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats[HOLE], shown[HOLE], err_msg="engines see the same fill in both types")
    np.testing.assert_array_equal(floats[:, valid_of(image)], image[:, valid_of(image)] + np.float32(0.25))


@pytest.mark.parametrize("changes", [{"dtype": "int16"}, {"normalisation": "scene"}], ids=["int16", "scene"])
def test_other_models_see_float32_and_the_mean(random_engine: Engine, changes: dict[str, str]) -> None:
    spec = dataclasses.replace(random_engine.spec, mean=(100.6, 254.6), **changes)  # type: ignore[arg-type]
    image = noise(2, 20, 24)
    shown = to_image(image, valid_of(image), spec)
    assert shown.dtype == np.float32
    np.testing.assert_array_equal(shown[HOLE], np.full((2, 6, 2), np.array([[[100.6]], [[254.6]]], np.float32)))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_pipeline_shows_bytes_as_they_are(random_engine: Engine, batch_size: int) -> None:
    image = noise(2, 150, 130)
    watched = Watched(random_engine)
    labels = segment_array(watched, image, valid_of(image), options=TilingOptions(64, batch_size))
    assert {shown.dtype.name for shown in watched.seen} == {"uint8"}
    filled = to_image(image, valid_of(image), random_engine.spec).astype(np.float32)
    expected = segment_array(random_engine, filled)
    np.testing.assert_array_equal(labels, np.where(valid_of(image), expected, 255))


def test_a_scene_that_is_rescaled_is_shown_as_it_is_rescaled(scene_engine: Engine) -> None:
    image = noise(2, 60, 60)
    watched = Watched(scene_engine)
    segment_array(watched, image)
    read = scene_reader(scene_engine.spec, lambda window: (image[:, *window.slices], np.ones((60, 60), np.bool_)), 60, 60)
    ((shown,),) = watched.seen
    assert shown.dtype == np.float32
    np.testing.assert_array_equal(shown, read(Window(0, 0, 60, 60))[0])


def test_whole_numbers_become_bytes() -> None:
    image = noise(2, 16, 16)[None]
    for images in (image, image.astype(np.float32)):
        found = to_uint8(images)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("values", [[0.5], [-1], [256], [np.nan], [np.inf]])
def test_other_values_do_not(values: Sequence[float]) -> None:
    images = np.zeros((1, 2, 4, 4), np.float32)
    images.flat[3] = values[0]
    with pytest.raises(EngineError, match=r"values other than 0, 1 \.\. 255, .* round them"):
        to_uint8(images)

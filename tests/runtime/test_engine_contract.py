"""What every engine owes its callers, whichever library runs the model; one that is not here is skipped by name."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from autoreg import Engine, load_engine
from autoreg.errors import AutoregError, EngineError
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from autoreg.runtime.devices import DEVICES, Device, check_device
from autoreg.runtime.probabilities import probabilities
from conftest import RANGES, Models, noise

STRIDE, BANDS, CLUSTERS = 4, 2, 4
Load = Callable[..., Engine]
"""Loads a model on the device of the test."""


@pytest.fixture(params=DEVICES, ids=[device.name for device in DEVICES])
def device(request: pytest.FixtureRequest) -> Device:
    chosen: Device = request.param
    try:
        check_device(chosen)
    except AutoregError:
        pytest.skip(f"the device {chosen.name} is not here")
    return chosen


@pytest.fixture(scope="module")
def path(models: Models) -> Path:
    return models(BANDS, "uint8")


@pytest.fixture
def engine(device: Device, path: Path) -> Engine:
    return load_engine(path, device=device.name, threads=1)


def images(count: int, height: int = 64, width: int = 96) -> NDArray[np.float32]:
    return np.stack([noise(BANDS, height, width, seed=index) for index in range(count)]).astype(np.float32)


def test_it_says_what_it_is(engine: Engine, path: Path) -> None:
    assert engine.spec.bands == ("band1", "band2")
    assert (engine.spec.stride, engine.spec.clusters) == (STRIDE, CLUSTERS)
    assert engine.model_digest == sha256(path.read_bytes()).hexdigest()
    assert engine.lanes == 1


def test_it_says_which_library_runs_and_on_what(engine: Engine, device: Device) -> None:
    name = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}[device.libraries[0]]
    assert engine.device.startswith(name)
    assert engine.device.endswith(" on the CPU") != device.gpu


@pytest.mark.parametrize(
    "shape", [(1, STRIDE, STRIDE), (1, 3 * STRIDE, 40 * STRIDE), (3, 64, 96), (2, 96, 64), (1, 256, 256)]
)
def test_any_size_on_the_stride_and_any_batch(engine: Engine, shape: tuple[int, int, int]) -> None:
    count, height, width = shape
    labels, logits = engine.predict(images(*shape))
    assert labels.shape == shape
    assert logits.shape == (count, CLUSTERS, height // STRIDE, width // STRIDE)
    assert (str(labels.dtype), str(logits.dtype)) == ("uint8", "float32")
    assert labels.max() < CLUSTERS
    np.testing.assert_array_equal(engine.label(images(*shape)), labels)


def test_labels_are_the_argmax_of_the_upsampled_logits(engine: Engine) -> None:
    labels, logits = engine.predict(images(3))
    probs = probabilities(logits, STRIDE)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    assert len(np.unique(labels)) == CLUSTERS
    chosen = np.take_along_axis(probs, labels[:, None].astype(np.intp), axis=1)[:, 0]
    assert (chosen >= probs.max(axis=1) - 1e-6).all()  # of two that are as good, either


def test_images_of_a_batch_do_not_influence_each_other(engine: Engine) -> None:
    together = engine.label(images(3))
    for index, image in enumerate(images(3)):
        np.testing.assert_array_equal(engine.label(image[None])[0], together[index])


def test_same_input_same_output(engine: Engine, device: Device, path: Path) -> None:
    first = engine.predict(images(2))
    kept = first.labels.copy(), first.logits.copy()
    engine.predict(images(2)[::-1].copy())  # answers are the caller's: the next call does not overwrite them
    for again in (first, engine.predict(images(2)), load_engine(path, device=device.name, threads=1).predict(images(2))):
        np.testing.assert_array_equal(again.labels, kept[0])
        np.testing.assert_array_equal(again.logits, kept[1])


def test_the_number_of_threads_does_not_change_labels(engine: Engine, device: Device, path: Path) -> None:
    other = load_engine(path, device=device.name, threads=2)
    np.testing.assert_array_equal(engine.label(images(3, 128, 128)), other.label(images(3, 128, 128)))


def test_images_that_are_a_view_of_others(engine: Engine) -> None:
    whole = images(1, 128, 128)
    np.testing.assert_array_equal(engine.label(whole[:, :, 32:96, 32:96]), engine.label(whole[:, :, 32:96, 32:96].copy()))
    np.testing.assert_array_equal(engine.label(whole[:, :, ::-1]), engine.label(whole[:, :, ::-1].copy()))


@pytest.mark.parametrize("threads", [3, 6])
def test_as_many_threads_as_there_are_lanes_may_call_it_and_more(
    engine: Engine, device: Device, path: Path, threads: int
) -> None:
    parallel = load_engine(path, device=device.name, threads=1, lanes=3)
    assert parallel.lanes == 3
    tiles = [images(4)[index : index + 1, :, : 32 + 8 * index] for index in range(4)] * 6
    with ThreadPoolExecutor(threads) as pool:
        predictions = list(pool.map(parallel.predict, tiles))
        labels = list(pool.map(parallel.label, tiles))
    for tile, prediction, label in zip(tiles, predictions, labels, strict=True):
        expected = engine.predict(tile)
        np.testing.assert_array_equal(prediction.labels, expected.labels)
        np.testing.assert_array_equal(prediction.logits, expected.logits)
        np.testing.assert_array_equal(label, expected.labels)


def test_it_agrees_with_onnx_runtime_on_the_cpu(device: Device, model: Path, scenes: list[Path]) -> None:
    engine, reference = (load_engine(model, device=name, threads=1) for name in (device.name, "cpu"))
    tiles = []
    for scene in scenes:
        with RasterReader(scene, bands=len(engine.spec.bands)) as reader:
            tiles.append(reader.read(Window(0, 0, 144, 144))[0].astype(np.float32))
    ours, theirs = engine.predict(np.stack(tiles)), reference.predict(np.stack(tiles))
    stride = engine.spec.stride
    assert np.mean(ours.labels == theirs.labels) >= 0.999
    np.testing.assert_allclose(probabilities(ours.logits, stride), probabilities(theirs.logits, stride), atol=1e-4)


def test_images_of_bytes_are_those_of_float32(engine: Engine) -> None:
    """They are a quarter as large; which of the two an engine computes with is its own business."""
    floats = images(3)
    for found, expected in zip(engine.predict(floats.astype(np.uint8)), engine.predict(floats), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(engine.label(floats.astype(np.uint8)), engine.label(floats))


def test_nan_makes_no_error_and_stays_in_its_image(device: Device, models: Models) -> None:
    """Who calls fills what is no data; an engine that is not told what is must not fail, nor spoil other images."""
    engine = load_engine(models(BANDS, "float32"), device=device.name, threads=1)
    scale, offset = RANGES["float32"]
    whole = images(2) * np.float32(scale) + np.float32(offset)
    spoilt = whole.copy()
    spoilt[0, :, 8:16, 8:16] = np.nan
    labels = engine.label(spoilt)
    assert labels.max() < CLUSTERS
    np.testing.assert_array_equal(labels[1], engine.label(whole)[1])


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((1, 3, 64, 64), np.float32), r"shape \(1, 3, 64, 64\), expected \(images, 2 bands, height, width\)"),
        (np.zeros((1, 2, 66, 64), np.float32), r"shape \(1, 2, 66, 64\), expected .* multiples of 4"),
        (np.zeros((2, 64, 64), np.float32), r"shape \(2, 64, 64\), expected"),
        (np.zeros((0, 2, 64, 64), np.float32), r"shape \(0, 2, 64, 64\), expected"),
        (np.zeros((1, 2, 64, 64), np.float64), "type float64, expected float32 or uint8; convert them with astype"),
    ],
    ids=["bands", "stride", "axes", "none", "type"],
)
def test_images_that_do_not_fit_are_refused(engine: Engine, image: NDArray[np.float32], sentence: str) -> None:
    for call in (engine.label, engine.predict):
        with pytest.raises(EngineError, match=sentence):
            call(image)


def test_bytes_are_refused_where_pixels_are_none(device: Device, models: Models) -> None:
    engine = load_engine(models(BANDS, "uint16"), device=device.name)
    with pytest.raises(EngineError, match="type uint8, expected float32; convert them with astype"):
        engine.label(np.zeros((1, 2, 64, 64), np.uint8))

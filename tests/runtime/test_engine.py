"""What every engine owes its callers."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from autoreg import Engine, load_engine
from autoreg.errors import EngineError, ModelError
from autoreg.runtime.probabilities import probabilities
from autoreg.spec import METADATA_KEY
from conftest import noise


def images(count: int) -> np.ndarray:
    return np.stack([noise(2, 64, 96, seed=index) for index in range(count)]).astype(np.float32)


def test_shapes_and_types(random_engine: Engine) -> None:
    stride = random_engine.spec.stride
    labels, logits = random_engine.predict(images(3))
    assert labels.shape == (3, 64, 96)
    assert logits.shape == (3, 4, 64 // stride, 96 // stride)
    assert (str(labels.dtype), str(logits.dtype)) == ("uint8", "float32")
    np.testing.assert_array_equal(random_engine.label(images(3)), labels)


def test_labels_are_the_most_probable_class(random_engine: Engine) -> None:
    labels, logits = random_engine.predict(images(2))
    probs = probabilities(logits, random_engine.spec.stride)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    chosen = np.take_along_axis(probs, labels[:, None].astype(np.intp), axis=1)[:, 0]
    assert (chosen >= probs.max(axis=1) - 1e-6).all()


def test_images_of_a_batch_do_not_influence_each_other(random_engine: Engine) -> None:
    together = random_engine.label(images(3))
    for index, image in enumerate(images(3)):
        np.testing.assert_array_equal(random_engine.label(image[None])[0], together[index])


def test_threads_do_not_change_labels(model: Path) -> None:
    image = noise(4, 128, 128)[None].astype(np.float32)
    np.testing.assert_array_equal(load_engine(model, threads=1).label(image), load_engine(model, threads=2).label(image))


def test_input_off_the_stride_grid_is_an_error(random_engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"shape \(1, 3, 64, 64\)"):
        random_engine.label(np.zeros((1, 3, 64, 64), np.float32))


def test_what_is_no_model_is_refused(model: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage")
    bare = onnx.load(model)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    lying = onnx.load(model)
    lying.metadata_props[0].value = lying.metadata_props[0].value.replace('"stride": 2', '"stride": "2"')
    onnx.save(lying, tmp_path / "lying.onnx")
    lying.metadata_props[0].value = load_engine(model).spec.to_json().replace('"clusters": [4]', '"clusters": [4, 5]')
    onnx.save(lying, tmp_path / "more.onnx")
    assert lying.metadata_props[0].key == METADATA_KEY
    for name, message in (
        ("none.onnx", r"there is no model .*none\.onnx; make one with autoreg export"),
        ("garbage.onnx", r"garbage\.onnx is not an ONNX model"),
        ("bare.onnx", r"bare\.onnx has no autoreg\.spec .* use autoreg export"),
        ("more.onnx", r"more\.onnx gives 5 clusters, but its spec says 6; export it again"),
        ("lying.onnx", r"spec is not valid .*'2' is not of type int"),
    ):
        with pytest.raises(ModelError, match=message):
            load_engine(tmp_path / name)

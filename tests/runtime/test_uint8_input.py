"""Models that take uint8: the same labels and logits, from every library; and what of a file is digested as its graph."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from autoreg import load_engine
from autoreg.calibration.layers import find_layers
from autoreg.calibration.quantize import quantize_model
from autoreg.errors import ModelError
from autoreg.export import export_onnx
from autoreg.naming.write import write_classes
from autoreg.runtime.model_file import graph_digest
from autoreg.runtime.uint8_input import to_uint8_input
from conftest import Models, noise


@pytest.fixture(scope="module")
def model(models: Models) -> Path:
    return models(2, "uint8")


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def content(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    if request.param == "fp32":
        return model.read_bytes()
    if request.param == "fp16":
        half = tmp_path_factory.mktemp("half") / "model.onnx"
        export_onnx(model.with_suffix(".pt"), half, precision="fp16")
        return half.read_bytes()
    floats = onnx.load(model)
    layers = find_layers(floats.graph)
    quantised = quantize_model(floats, layers, {name: 8.0 for layer in layers for name in layer.activations})
    return bytes(quantised.SerializeToString())


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.stack([noise(2, 64, 96, seed=seed) for seed in range(2)])


def onnx_runtime(model: bytes, images: NDArray[Any]) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return list(session.run(["labels", "logits"], {"image": images}))


def open_vino(model: bytes, images: NDArray[Any]) -> list[NDArray[Any]]:
    core = pytest.importorskip("openvino").Core()
    request = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    request.infer({"image": images})
    return [np.array(request.get_tensor(name).data) for name in ("labels", "logits")]


@pytest.mark.parametrize("run", [onnx_runtime, open_vino])
def test_labels_and_logits_are_those_of_the_file(content: bytes, images: NDArray[np.uint8], run: Any) -> None:
    found, expected = run(to_uint8_input(content), images), run(content, images.astype(np.float32))
    assert len(np.unique(found[0])) > 1
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_node_that_converts_is_all_that_is_new(content: bytes) -> None:
    before, after = onnx.load_from_string(content), onnx.load_from_string(to_uint8_input(content))
    onnx.checker.check_model(after, full_check=True)
    kinds = [one.graph.input[0].type.tensor_type.elem_type for one in (before, after)]
    assert kinds == [TensorProto.FLOAT, TensorProto.UINT8]
    assert after.graph.node[0].op_type == "Cast"
    converted = after.graph.node.pop(0).output[0]
    after.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    for node in after.graph.node:
        node.input[:] = ["image" if name == converted else name for name in node.input]
    assert after == before


def test_what_may_be_given_other_images_is_refused(models: Models, model: Path) -> None:
    with pytest.raises(ModelError, match="takes uint16 imagery of normalisation global, expected uint8 and global"):
        to_uint8_input(models(2, "uint16").read_bytes())
    scene = onnx.load(model)
    spec = dataclasses.replace(load_engine(model).spec, normalisation="scene")
    scene.metadata_props[0].value = spec.to_json()
    with pytest.raises(ModelError, match="takes uint8 imagery of normalisation scene"):
        to_uint8_input(scene.SerializeToString())
    with pytest.raises(ModelError, match=r"of the types \(2, 2, 1\), expected float32, uint8 and float32"):
        to_uint8_input(to_uint8_input(model.read_bytes()))
    with pytest.raises(ModelError, match="is not an ONNX model"):
        to_uint8_input(b"garbage")


def test_the_graph_stays_when_classes_get_names_and_changes_with_a_weight(model: Path, tmp_path: Path) -> None:
    named = tmp_path / "named.onnx"
    classes = [dataclasses.replace(item, name=f"cover {item.label}") for item in load_engine(model).spec.classes]
    write_classes(model, named, classes)
    assert named.read_bytes() != model.read_bytes()
    assert graph_digest(named.read_bytes()) == graph_digest(model.read_bytes())
    changed = onnx.load(model)
    weights = next(item for item in changed.graph.initializer if item.data_type == TensorProto.FLOAT)
    values = numpy_helper.to_array(weights).copy()
    values.flat[0] += 1
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    assert graph_digest(changed.SerializeToString()) != graph_digest(model.read_bytes())
    other = onnx.load(model)
    other.opset_import[0].version += 1
    assert graph_digest(other.SerializeToString()) != graph_digest(model.read_bytes())


def test_what_is_no_model_has_no_graph(model: Path) -> None:
    with pytest.raises(ModelError, match="is not an ONNX model, or was cut off; export it again"):
        graph_digest(model.read_bytes()[:-10])

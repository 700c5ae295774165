import platform
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from autoreg.calibration.histogram import Histogram
from autoreg.calibration.layers import Layer, find_layers
from autoreg.calibration.observe import observe
from autoreg.calibration.quantize import check_layout, quantize_model, quantize_weights
from autoreg.calibration.samples import Samples, choose_samples
from autoreg.errors import ModelError
from autoreg.optional import require
from autoreg.runtime.engine import Prediction, load_engine
from autoreg.runtime.engines.onnxruntime import OnnxRuntimeEngine
from autoreg.runtime.parity import compare
from autoreg.runtime.zero_point import ANY_SIGN, NOT_NEGATIVE, to_unsigned


@pytest.fixture(scope="module")
def samples(trained: Path, scenes: list[Path]) -> Samples:
    return choose_samples(scenes, load_engine(trained).spec, tiles=16, tile_px=32)[0]


@pytest.fixture(scope="module")
def histograms(trained: Path, samples: Samples) -> dict[str, Histogram]:
    content = onnx.load(trained)
    names = dict.fromkeys(name for layer in find_layers(content.graph) for name in layer.activations)
    return observe(content, list(names), samples)


@pytest.fixture(scope="module")
def quantised(trained: Path, histograms: dict[str, Histogram]) -> onnx.ModelProto:
    content = onnx.load(trained)
    limits = {name: histogram.maximum for name, histogram in histograms.items()}
    return quantize_model(content, find_layers(content.graph), limits)


def test_each_output_channel_has_its_own_scale() -> None:
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=(6, 3, 3, 3)) * 10.0 ** np.arange(-3, 3)[:, None, None, None]).astype(np.float32)
    weights[2] = 0
    numbers, scales = quantize_weights(weights)
    assert numbers.dtype == np.int8
    assert scales.dtype == np.float32
    for channel, number, scale in zip(weights, numbers, scales, strict=True):
        assert scale > 0
        if channel.any():
            assert scale == pytest.approx(np.abs(channel).max() / 127)
            assert np.abs(number).max() == 127
        assert np.abs(number * scale - channel).max() <= scale / 2 * (1 + 1e-5)
    assert not numbers[2].any()


def test_the_layers_are_the_convolutions_and_the_skip_connections(trained: Path) -> None:
    graph = onnx.load(trained).graph
    layers = find_layers(graph)
    kinds = Counter(node.op_type for node in graph.node)
    skips = [layer for layer in layers if layer.name.endswith(".skip")]
    assert (len(layers) - len(skips), len(skips)) == (kinds["Conv"], kinds["Add"])
    places = [place for layer in layers for place in layer.places]
    assert len(places) == len(set(places)) == 2 * kinds["Conv"] + 2 * kinds["Add"]
    assert layers[0].name == "extractor.0.conv.conv"
    assert layers[-1].name == "decoder"


def residual_graph() -> onnx.GraphProto:
    """As in ResNet: two convolutions that are added, and then a ReLU; both have the same weights."""
    weights = numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "shared.weight")
    nodes = [
        helper.make_node("Conv", ["image", "shared.weight"], ["a"]),
        helper.make_node("Conv", ["image", "shared.weight"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["out"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 2, 4, 4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 2, 4, 4])
    return helper.make_graph(nodes, "residual", [image], [out], [weights])


def test_two_convolutions_that_are_added_need_no_skip_connection() -> None:
    model = helper.make_model(residual_graph(), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    layers = find_layers(model.graph)
    assert [layer.name for layer in layers] == ["shared", "b"]
    assert [layer.places for layer in layers] == [(("a", 0), ("a", 1), ("sum", 0)), (("b", 0), ("b", 1), ("sum", 1))]
    changed = quantize_model(model, layers, dict.fromkeys(("image", "a", "b"), 8.0))
    onnx.checker.check_model(changed, full_check=True)
    check_layout(changed)
    (found,) = ReferenceEvaluator(changed).run(None, {"image": np.full((1, 2, 4, 4), 2, np.float32)})
    np.testing.assert_allclose(np.asarray(found), 8, atol=0.1)


def test_the_model_has_the_layout_that_all_engines_take(trained: Path, quantised: onnx.ModelProto) -> None:
    onnx.checker.check_model(quantised, full_check=True)
    check_layout(quantised)
    assert quantised.ByteSize() < 0.45 * onnx.load(trained).ByteSize()
    kept = {node.op_type for node in quantised.graph.node}
    assert {"Sub", "Div", "Resize", "ArgMax"} <= kept
    biases = {node.input[2] for node in quantised.graph.node if node.op_type == "Conv"}
    kinds = {item.name: item.data_type for item in quantised.graph.initializer}
    assert {kinds[name] for name in biases} == {TensorProto.FLOAT}


@pytest.mark.parametrize("chosen", ["each", "none"])
def test_any_layers_may_stay_in_float(trained: Path, histograms: dict[str, Histogram], chosen: str) -> None:
    content = onnx.load(trained)
    limits = {name: histogram.maximum for name, histogram in histograms.items()}
    sets: list[list[Layer]] = [[layer] for layer in find_layers(content.graph)] if chosen == "each" else [[]]
    for layers in sets:
        changed = quantize_model(content, layers, limits)
        onnx.checker.check_model(changed, full_check=True)
        check_layout(changed)
    if chosen == "none":
        assert changed == content


def first(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if node.op_type == kind)
    return found


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(item for item in model.graph.initializer if item.name == name)
    return found


def unsigned(model: onnx.ModelProto) -> None:
    model.ParseFromString(to_unsigned(model.SerializeToString()))


def zero_scale(model: onnx.ModelProto) -> None:
    scale = initializer(model, first(model, "QuantizeLinear").input[1])
    scale.CopyFrom(numpy_helper.from_array(np.array(0, np.float32), scale.name))


def one_scale_for_weights(model: onnx.ModelProto) -> None:
    name = first(model, "Conv").input[1].replace(".dequantized", ".scale")
    initializer(model, name).CopyFrom(numpy_helper.from_array(np.array(1, np.float32), name))


def quantised_bias(model: onnx.ModelProto) -> None:
    conv = first(model, "Conv")
    conv.input[2] = conv.input[0]


def before_relu(model: onnx.ModelProto) -> None:
    first(model, "Relu").input[0] = first(model, "QuantizeLinear").input[0] + ".dequantized"


def quantised_upsampling(model: onnx.ModelProto) -> None:
    first(model, "Resize").input[0] = first(model, "QuantizeLinear").input[0] + ".dequantized"


def float_weights(model: onnx.ModelProto) -> None:
    conv = first(model, "Conv")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((32, 4, 3, 3), np.float32), "float"))
    conv.input[1] = "float"


def other_scale(model: onnx.ModelProto) -> None:
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and len(node.input) == 3]
    nodes[0].input[1] = nodes[1].input[1]


BROKEN: dict[Callable[[onnx.ModelProto], None], str] = {
    unsigned: "is not an INT8 0",
    zero_scale: "is not positive",
    one_scale_for_weights: "does not have a scale for each output channel",
    quantised_bias: "input 2 of Conv",
    before_relu: "input 0 of Relu",
    quantised_upsampling: "input 0 of Resize",
    float_weights: "the input or the weights alone are quantised|is not the weights",
    other_scale: "dequantised by another scale",
}


@pytest.mark.parametrize("damage", list(BROKEN), ids=lambda damage: damage.__name__)
def test_another_layout_is_refused(quantised: onnx.ModelProto, damage: Callable[[onnx.ModelProto], None]) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(quantised)
    damage(broken)
    with pytest.raises(ModelError, match=rf"would not run everywhere.*({BROKEN[damage]})"):
        check_layout(broken)


def test_onnx_runtime_computes_what_the_reference_evaluator_does(quantised: onnx.ModelProto, samples: Samples) -> None:
    image, _ = next(iter(samples))
    labels, logits = map(np.asarray, ReferenceEvaluator(quantised).run(None, {"image": image}))
    content = quantised.SerializeToString()
    said = OnnxRuntimeEngine(content, "stored", as_stored=True).predict(image)
    # A number that lies between two is rounded by the order of float32 sums.
    assert compare(Prediction(labels, logits), said, 2).agreement >= 0.99


def test_the_unsigned_form_is_the_same_function_within_the_ranges(quantised: onnx.ModelProto, samples: Samples) -> None:
    content = quantised.SerializeToString()
    changed = onnx.load_model_from_string(to_unsigned(content))
    zeros = {name: initializer(changed, name) for name in (ANY_SIGN, NOT_NEGATIVE)}
    assert {name: int(numpy_helper.to_array(item)) for name, item in zeros.items()} == {ANY_SIGN: 128, NOT_NEGATIVE: 0}
    assert {item.data_type for item in zeros.values()} == {TensorProto.UINT8}
    onnx.checker.check_model(changed, full_check=True)
    image, _ = next(iter(samples))
    said = []
    for model in (quantised, changed):
        (logits,) = ReferenceEvaluator(model).run(["logits"], {"image": image})
        said.append(np.asarray(logits))
    np.testing.assert_array_equal(said[0], said[1])
    stored, fast = (OnnxRuntimeEngine(content, "model", as_stored=form).predict(image) for form in (True, False))
    assert compare(stored, fast, 2).agreement >= 0.99


def test_a_float_model_is_not_touched(trained: Path) -> None:
    assert to_unsigned(trained.read_bytes()) == trained.read_bytes()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors fuse other forms")
def test_onnx_runtime_fuses_every_convolution_but_the_last(quantised: onnx.ModelProto, tmp_path: Path) -> None:
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "fused.onnx"), 3
    runtime.InferenceSession(to_unsigned(quantised.SerializeToString()), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    convs = sum(node.op_type == "Conv" for node in quantised.graph.node)
    # The logits, that the last one gives, stay in float.
    assert (kinds["QLinearConv"], kinds["Conv"] + kinds["FusedConv"]) == (convs - 1, 1)

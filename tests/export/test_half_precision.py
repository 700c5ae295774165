"""What float16 and bfloat16 have to hold."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from autoreg.export import export_onnx
from autoreg.export.precision import FP16_LIMIT, find_largest_activation
from autoreg.export.strip import strip
from autoreg.network.checkpoint import load_checkpoint, save_checkpoint
from autoreg.runtime.engine import load_engine
from conftest import save_random_checkpoint

NAME = "masked.0.mix.1"


def stretch_layer(path: Path, largest: float) -> Path:
    """Have a layer of a checkpoint reach ``largest``, and the next, beyond a ReLU, take it back: the network is the same."""
    checkpoint = load_checkpoint(path)
    network = checkpoint.build_network()
    seen = []
    layer = network.get_submodule(NAME)
    layer.register_forward_hook(lambda _module, _inputs, output: seen.append(float(output.abs().max())))
    with torch.no_grad():
        network(checkpoint.samples)
    factor = largest / max(seen)
    content = torch.load(path, weights_only=True)
    for name in ("weight", "bias"):
        content["weights"][f"{NAME}.{name}"] *= factor
    content["weights"]["masked.0.mix.2.weight"] /= factor
    torch.save(content, path)
    return path


@pytest.mark.parametrize("share", [0.2, 0.3])
def test_a_layer_that_comes_near_to_what_float16_holds_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, share: float
) -> None:
    path = stretch_layer(save_random_checkpoint(tmp_path / "c.pt", stride=2), share * FP16_LIMIT)
    checkpoint = load_checkpoint(path)
    name, largest = find_largest_activation(strip(checkpoint.build_network()), checkpoint.samples)
    assert name == NAME
    assert largest == pytest.approx(share * FP16_LIMIT, rel=1e-4)
    with caplog.at_level(logging.WARNING, logger="autoreg"):
        export_onnx(path, tmp_path / "single.onnx")
        assert not caplog.messages
        exported = export_onnx(path, tmp_path / "half.onnx", precision="fp16")
    assert exported.parity.agreement >= 0.999
    expected = f"the activations of layer {NAME} reach {largest:.4g} on the sample crops, and float16 ends at 65504"
    assert [expected in message for message in caplog.messages] == ([True] if share > 0.25 else [])


def test_labels_are_decided_in_float32(tmp_path: Path) -> None:
    path = save_random_checkpoint(tmp_path / "c.pt", stride=2)
    content = torch.load(path, weights_only=True)
    content["weights"]["decoder.weight"] *= 100  # no ties, which float16 would break
    torch.save(content, path)
    export_onnx(path, tmp_path / "half.onnx", precision="fp16")
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "half.onnx")).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    for kind, expected in (("Conv", onnx.TensorProto.FLOAT16), ("Resize", onnx.TensorProto.FLOAT)):
        assert {kinds[node.output[0]] for node in graph.node if node.op_type == kind} == {expected}
    (decision,) = (node for node in graph.node if node.op_type == "ArgMax")
    assert kinds[decision.input[0]] == onnx.TensorProto.FLOAT
    assert [node.op_type for node in graph.node][-3:] == ["Resize", "ArgMax", "Cast"]


def test_bfloat16_is_what_the_engines_that_have_it_compute_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO, where the processor has it; any other engine, and OpenVINO elsewhere, computes in float32."""
    path = save_random_checkpoint(tmp_path / "c.pt", stride=2)
    single, half = tmp_path / "single.onnx", tmp_path / "half.onnx"
    export_onnx(path, single)
    exported = export_onnx(path, half, precision="bf16")
    assert (exported.spec.precision, exported.spec.agreement) == ("bf16", exported.parity.agreement)
    assert 1e-5 < exported.parity.max_probability_difference < 0.1, "it is not float32 that was compared"
    images = load_checkpoint(path).samples.numpy()
    exact = load_engine(single, device="cpu").predict(images).logits
    np.testing.assert_array_equal(load_engine(half, device="cpu").predict(images).logits, exact)
    here = "BF16" in pytest.importorskip("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for has_bf16 in {here, False}:
        monkeypatch.setattr("autoreg.runtime.engines.openvino._has_bf16", lambda _core, found=has_bf16: found)
        engine = load_engine(half, device="openvino")
        assert engine.device.endswith(" on the CPU in bfloat16" if has_bf16 else " on the CPU")
        difference = np.abs(engine.predict(images).logits - exact).max() / np.abs(exact).max()
        assert difference < 0.05
        assert (difference > 1e-4) == has_bf16


def test_bfloat16_normalises_16_bit_imagery_in_float32(tmp_path: Path) -> None:
    """As bfloat16, pixels around 10000 would be multiples of 64, which is more than their deviation."""
    pytest.importorskip("openvino")
    path = save_random_checkpoint(tmp_path / "c.pt", stride=2)
    checkpoint = load_checkpoint(path)
    weights = checkpoint.weights | {"mean": checkpoint.weights["mean"] + 10_000}
    samples = checkpoint.samples + 10_000
    save_checkpoint(dataclasses.replace(checkpoint, dtype="uint16", weights=weights, samples=samples), path, overwrite=True)
    export_onnx(path, tmp_path / "half.onnx", precision="bf16")
    exact, half = (load_engine(tmp_path / "half.onnx", device=name).predict(samples.numpy()) for name in ("cpu", "openvino"))
    assert np.abs(half.logits - exact.logits).max() < 0.05 * np.abs(exact.logits).max()


def test_raw_pixels_do_not_count_and_normalised_ones_do(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_random_checkpoint(tmp_path / "c.pt", stride=2))
    network = checkpoint.build_network()
    network.mean.fill_(40_000.0)
    network.std.fill_(0.01)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1e-3)
    samples = checkpoint.samples + 40_000
    name, largest = find_largest_activation(strip(network), samples)
    assert name == "extractor.0.conv.conv"
    assert largest == pytest.approx(float(np.abs((samples.numpy() - 40_000) / 0.01).max()), rel=1e-3)

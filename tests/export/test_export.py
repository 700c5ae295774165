from pathlib import Path

import numpy as np
import onnx
import pytest
import rasterio
import torch
from onnx.reference import ReferenceEvaluator

from autoreg.errors import CheckpointError, OutputError, ParityError
from autoreg.export import export_onnx
from autoreg.export.strip import DeployedNetwork, strip
from autoreg.network.checkpoint import digest_file, load_checkpoint
from autoreg.network.masked_conv import MaskedConv2d
from autoreg.runtime import parity
from autoreg.runtime.engine import Prediction, load_engine
from autoreg.runtime.parity import compare
from conftest import save_random_checkpoint


@pytest.mark.parametrize("stride", [2, 4])
def test_the_stripped_network_equals_the_network_without_ordering(tmp_path: Path, stride: int) -> None:
    checkpoint = load_checkpoint(save_random_checkpoint(tmp_path / "c.pt", stride=stride))
    network = checkpoint.build_network()
    stripped = strip(network)
    labels, logits = stripped(checkpoint.samples)
    torch.testing.assert_close(logits, network(checkpoint.samples, None), atol=2e-5, rtol=1e-5)
    assert (labels == DeployedNetwork(network)(checkpoint.samples)[0]).float().mean() > 0.9999
    kinds = {type(module) for module in stripped.modules()}
    assert not kinds & {MaskedConv2d, torch.nn.BatchNorm2d}


@pytest.fixture(scope="module")
def scene(scenes: list[Path]) -> np.ndarray:
    with rasterio.open(scenes[1]) as dataset:
        return np.asarray(dataset.read()[None], np.float32)


def torch_prediction(checkpoint: Path, image: np.ndarray) -> Prediction:
    with torch.no_grad():
        labels, logits = DeployedNetwork(load_checkpoint(checkpoint).build_network())(torch.from_numpy(image))
    return Prediction(labels.numpy(), logits.numpy())


def test_fp32_says_what_torch_says(checkpoint: Path, model: Path, scene: np.ndarray) -> None:
    result = compare(torch_prediction(checkpoint, scene), load_engine(model).predict(scene), 2)
    assert result.agreement >= 0.9999
    assert result.max_probability_difference <= 1e-5


def test_fp16_says_nearly_what_torch_says(checkpoint: Path, model: Path, scene: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    exported = export_onnx(checkpoint, path, precision="fp16")
    assert exported.spec.precision == "fp16"
    assert exported.bytes == path.stat().st_size < 0.7 * model.stat().st_size
    half = onnx.load(path)
    onnx.checker.check_model(half, full_check=True)
    kinds = {tensor.data_type for tensor in half.graph.initializer if len(tensor.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16} or onnx.TensorProto.FLOAT16 in kinds
    types = [value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)]
    assert types == [onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT]
    assert compare(torch_prediction(checkpoint, scene), load_engine(path).predict(scene), 2).agreement >= 0.999


def test_fp16_normalises_16_bit_imagery_in_float32(tmp_path: Path) -> None:
    path = save_random_checkpoint(tmp_path / "c.pt", stride=2)
    content = torch.load(path, weights_only=True)
    content["weights"]["mean"].fill_(40_000.0)
    content["weights"]["std"].fill_(15_000.0)
    content["samples"] = content["samples"] * 300 + 1000  # up to 77,500: infinite in float16
    content["dtype"] = "uint16"
    torch.save(content, path)
    assert export_onnx(path, tmp_path / "half.onnx", precision="fp16").parity.agreement >= 0.999


def test_the_onnx_reference_evaluator_agrees(checkpoint: Path, model: Path, scene: np.ndarray) -> None:
    image = scene[:, :, 60:92, 60:100]
    labels, logits = map(np.asarray, ReferenceEvaluator(onnx.load(model)).run(None, {"image": image}))
    result = compare(torch_prediction(checkpoint, image), Prediction(labels, logits), 2)
    assert result.agreement >= 0.9999
    assert result.max_probability_difference <= 1e-5


def test_the_file_keeps_its_promises(checkpoint: Path, model: Path) -> None:
    content = onnx.load(model)
    onnx.checker.check_model(content, full_check=True)
    assert [(entry.domain, entry.version) for entry in content.opset_import] == [("", 20)]
    (image,), (labels, logits) = content.graph.input, content.graph.output
    axes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (image, labels, logits)]
    assert axes == [["batch", 4, "height", "width"], ["batch", "height", "width"], ["batch", 5, "rows", "cols"]]
    assert "Softmax" not in {node.op_type for node in content.graph.node}
    spec = load_engine(model).spec
    assert spec.bands == ("red", "green", "blue", "nir")
    assert spec.dtype == "uint8"
    assert len(spec.classes) == 5
    assert (spec.stride, spec.precision) == (2, "fp32")
    assert spec.checkpoint_digest == digest_file(checkpoint)
    assert spec.agreement >= 0.9999
    assert spec.receptive_field_px == load_checkpoint(checkpoint).build_network().receptive_field_px


def test_the_file_is_reproducible_and_names_no_path_of_this_machine(checkpoint: Path, model: Path, tmp_path: Path) -> None:
    export_onnx(checkpoint, tmp_path / "again.onnx")
    content = model.read_bytes()
    assert (tmp_path / "again.onnx").read_bytes() == content
    assert b"site-packages" not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_a_model_that_says_something_else_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impossible = parity.Tolerance(agreement=1.0, probability_difference=0.0)
    monkeypatch.setitem(parity.TOLERANCES, "fp16", impossible)
    with pytest.raises(ParityError, match="fp16 model does not say what PyTorch says"):
        export_onnx(checkpoint, tmp_path / "model.onnx", precision="fp16")
    assert list(tmp_path.iterdir()) == []


def test_wrong_files_are_refused_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        export_onnx(tmp_path / "none.pt", tmp_path / "model.onnx")
    existing = tmp_path / "model.onnx"
    existing.write_text("precious")
    with pytest.raises(OutputError, match="exists"):
        export_onnx(checkpoint, existing)
    assert existing.read_text() == "precious"

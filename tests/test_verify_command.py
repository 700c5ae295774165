"""``autoreg verify`` as a user runs it."""

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import rasterio
from onnx import numpy_helper

from autoreg.export import export_onnx
from autoreg.network.checkpoint import load_checkpoint
from autoreg.raster.gdal import georeference_optional
from conftest import save_random_checkpoint
from forks import autoreg


def perturb(model: Path, target: Path) -> Path:
    """A model in which one weight of the decoder is another one."""
    content = onnx.load(model)
    (weight,) = (tensor for tensor in content.graph.initializer if tensor.name.endswith("decoder.weight"))
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] += 3 * np.abs(values).max()
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(content, target)
    return target


def refused(result: subprocess.CompletedProcess[str], message: str) -> None:
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert message in line
    assert result.stdout == ""


def test_a_model_is_equal_to_itself(model: Path, scenes: list[Path]) -> None:
    same = autoreg("verify", model, model, "--tiles", *scenes, "--json")
    assert same.returncode == 0, same.stderr
    found = json.loads(same.stdout)
    assert (found["agreement"], found["clear_agreement"], found["max_probability_difference"]) == (1.0, 1.0, 0.0)
    assert (found["min_agreement"], found["passed"], found["worst"]["differing"]) == (0.999, True, 0)
    assert {value for value in found["iou"] if value is not None} == {1.0}
    pixels = 0
    for scene in scenes:
        with rasterio.open(scene) as dataset:
            pixels += int((dataset.dataset_mask() > 0).sum())
    assert found["pixels"] == pixels


def test_a_checkpoint_and_its_models_agree_on_its_own_crops_and_on_scenes(
    checkpoint: Path, model: Path, scenes: list[Path], tmp_path: Path
) -> None:
    half = tmp_path / "half.onnx"
    export_onnx(checkpoint, half, precision="fp16")
    for first, second in ((checkpoint, model), (model, checkpoint)):
        found = json.loads(autoreg("verify", first, second, "--json").stdout)
        assert found["agreement"] >= 0.999
        assert found["max_probability_difference"] < 1e-4
        assert found["pixels"] == load_checkpoint(checkpoint).samples[:, 0].numel()
        assert found["worst"]["place"].startswith("sample crop")
    text = autoreg("verify", model, half, "--tiles", scenes[0], "--tiles", scenes[1], "--device", "cpu")
    assert text.returncode == 0, text.stdout
    assert "equal enough: expected at least 99.9 % of the labels" in text.stdout
    assert f"A  {model}: fp32, ONNX Runtime" in text.stdout
    assert f"B  {half}: fp16, ONNX Runtime" in text.stdout


def test_one_other_weight_is_seen_and_drawn(checkpoint: Path, model: Path, scenes: list[Path], tmp_path: Path) -> None:
    other, picture = perturb(model, tmp_path / "other.onnx"), tmp_path / "worst.png"
    words = ["verify", model, other, "--tiles", *scenes, "--picture", picture]
    result = autoreg(*words, "--json")
    assert result.returncode == 1
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert found["agreement"] < 0.999
    assert not found["passed"]
    with georeference_optional(), rasterio.open(picture) as dataset:
        drawn = dataset.read()
    red = (drawn == np.array([214, 0, 0])[:, None, None]).all(axis=0)
    assert red.sum() == found["worst"]["differing"] > 0
    assert not red[:, : 3 * drawn.shape[2] // 4].any()  # in the last panel alone
    refused(autoreg(*words), "worst.png exists; use --overwrite")
    lenient = autoreg(*words, "--overwrite", "--min-agreement", 0)
    assert lenient.returncode == 0, lenient.stdout
    strict = autoreg("verify", checkpoint, other)
    assert strict.returncode == 1
    assert "DIFFERENT: expected at least 99.9 % of the labels" in strict.stdout


def test_mistakes_get_one_sentence(model: Path, scenes: list[Path], tmp_path: Path) -> None:
    other = save_random_checkpoint(tmp_path / "other.pt", stride=2, classes=5)
    four = save_random_checkpoint(tmp_path / "four.pt", stride=2, classes=4)
    refused(autoreg("verify", model, model), "a model carries no imagery; give --tiles")
    refused(
        autoreg("verify", model, other), "the bands of the first is red, green, blue, nir and of the second band1, band2"
    )
    refused(autoreg("verify", other, four), "the number of clusters of the first is 5 and of the second 4")
    refused(autoreg("verify", model, tmp_path / "none.onnx"), "there is no model")
    refused(autoreg("verify", other, other, "--tiles", scenes[0]), "has 4 bands")
    refused(autoreg("verify", model, scenes[0]), "is not an ONNX model")
    assert autoreg("verify", model, model, "--min-agreement", 2).returncode == 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_model_carries_what_was_proven_of_it(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    model = tmp_path / "model.onnx"
    exported = export_onnx(checkpoint, model, precision=precision)
    described = json.loads(autoreg("info", model, "--json").stdout)
    assert described["parity"] == json.loads(exported.parity.to_json())
    assert described["parity"]["agreement"] == described["agreement"]
    assert "max_probability_difference" in autoreg("info", model).stdout
    content = onnx.load(model)
    del content.metadata_props[1:]
    onnx.save(content, model)
    assert json.loads(autoreg("info", model, "--json").stdout)["parity"] is None
    assert "not in the file" in autoreg("info", model).stdout

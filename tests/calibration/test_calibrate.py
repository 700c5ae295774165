import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from autoreg import load_engine, segment_raster
from autoreg.calibration import calibrate_model
from autoreg.calibration.calibrate import MIN_AGREEMENT
from autoreg.calibration.layers import find_layers
from autoreg.calibration.quantize import check_layout
from autoreg.calibration.ranges import METHODS
from autoreg.calibration.samples import choose_samples
from autoreg.commands.calibrate import calibrate as calibrate_command
from autoreg.errors import ConfigError, ModelError, OutputError, ParityError, RasterError
from autoreg.export import export_onnx
from autoreg.network.checkpoint import load_checkpoint, save_checkpoint
from autoreg.runtime.parity import PARITY_KEY
from autoreg.spec import CALIBRATION_KEY, METADATA_KEY
from autoreg.train import load_config, train_network
from conftest import noise, save_random_checkpoint, save_raster
from forks import autoreg
from test_cli import refused


@pytest.mark.parametrize("method", list(METHODS))
def test_a_trained_model_keeps_its_labels_on_tiles_that_were_held_out(
    trained: Path, scenes: list[Path], tmp_path: Path, method: str
) -> None:
    result = calibrate_model(trained, scenes, tmp_path / "m.onnx", method=method, tile_px=32)
    assert result.parity.agreement >= MIN_AGREEMENT
    assert result.spec.agreement == result.parity.agreement
    assert sum(item.precision == "int8" for item in result.layers) > 0.7 * len(result.layers)
    # Labels of the held-out tiles, by the files alone.
    before, after = load_engine(trained), load_engine(tmp_path / "m.onnx")
    _, held_out = choose_samples(scenes, before.spec, tiles=128, tile_px=32)
    equal = [(before.label(image) == after.label(image))[0][valid] for image, valid in held_out]
    assert np.concatenate(equal).size == result.parity.pixels
    assert np.concatenate(equal).mean() >= 0.99


def test_the_file_says_how_it_was_made_and_maps_rasters(trained: Path, scenes: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    result = calibrate_model(trained, scenes, path, tile_px=32, tiles=20)
    content = onnx.load(path)
    onnx.checker.check_model(content, full_check=True)
    check_layout(content)
    assert result.bytes == path.stat().st_size < 0.45 * trained.stat().st_size
    entries = {entry.key: entry.value for entry in content.metadata_props}
    assert set(entries) == {METADATA_KEY, PARITY_KEY, CALIBRATION_KEY}
    calibration = json.loads(entries[CALIBRATION_KEY])
    assert (calibration["method"], calibration["tiles"], calibration["held_out_tiles"]) == ("mse", 20, 5)
    assert [item["name"] for item in calibration["layers"]] == [item.name for item in find_layers(onnx.load(trained).graph)]
    engine = load_engine(path)
    expected = dataclasses.replace(load_engine(trained).spec, precision="int8", agreement=result.parity.agreement)
    assert engine.spec == result.spec == expected
    assert segment_raster(engine, scenes[0], tmp_path / "map.tif").pixels > 0


def test_two_calibrations_write_the_same_file(trained: Path, scenes: list[Path], tmp_path: Path) -> None:
    for name in "ab":
        calibrate_model(trained, scenes, tmp_path / f"{name}.onnx", tile_px=32, tiles=10)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.fixture(scope="module")
def lame(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same function, but one band is normalised to values 10,000 times as large as those of the others."""
    content = onnx.load(trained)
    tensors = {item.name: item for item in content.graph.initializer}

    def scale(name: str, place: tuple[slice | int, ...], factor: float) -> None:
        values = numpy_helper.to_array(tensors[name]).copy()
        values[place] *= factor
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))

    deviation = next(node.input[1] for node in content.graph.node if node.op_type == "Div")
    scale(deviation, (0,), 1e-4)
    scale("network.extractor.0.conv.conv.weight", (slice(None), 0), 1e-4)
    path = tmp_path_factory.mktemp("lame") / "model.onnx"
    onnx.save(content, path)
    return path


def test_a_layer_that_would_break_the_budget_stays_in_float(lame: Path, scenes: list[Path], tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    result = calibrate_model(
        lame, scenes, tmp_path / "m.onnx", method="min-max", tile_px=32, progress=lambda *news: told.append(news)
    )
    choices = {item.name: item for item in result.layers}
    bad = choices["extractor.0.conv.conv"]
    assert bad.precision == "fp32"
    assert bad.agreement is not None
    assert bad.agreement == min(item.agreement for item in result.layers if item.agreement is not None) < 0.9
    assert bad.reason.startswith("harm 1: alone it keeps")
    assert result.parity.agreement >= MIN_AGREEMENT
    assert sum(item.precision == "int8" for item in result.layers) > len(choices) / 2
    kinds = {item.name: item.data_type for item in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert kinds["network.extractor.0.conv.conv.weight"] == onnx.TensorProto.FLOAT
    assert kinds["network.masked.1.mix.1.weight.quantized"] == onnx.TensorProto.INT8
    assert told[-1] == ("comparing layers", len(choices), len(choices))
    assert ("measuring", 2 * result.tiles, 2 * result.tiles) in told


def test_the_command_asks_for_as_much() -> None:
    (option,) = (option for option in calibrate_command.params if option.name == "min_agreement")
    assert option.default == MIN_AGREEMENT


def test_a_budget_that_cannot_be_met_leaves_no_file(trained: Path, scenes: list[Path], tmp_path: Path) -> None:
    ranges = tmp_path / "ranges.json"
    calibrate_model(trained, scenes, tmp_path / "m.onnx", tile_px=32, ranges=ranges)
    (tmp_path / "m.onnx").unlink()
    content = json.loads(ranges.read_text())
    for item in content["activations"].values():
        item["maximum"] *= 1e-6  # everything is clipped
    ranges.write_text(json.dumps(content))
    with pytest.raises(ParityError, match=r"no INT8 model keeps 99\.40 % of the labels: the best .* lower --min-agreement"):
        calibrate_model(trained, scenes, tmp_path / "m.onnx", tile_px=32, ranges=ranges)
    assert list(tmp_path.iterdir()) == [ranges]


def test_ranges_are_reused_for_another_method_without_running_the_model(
    trained: Path, scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = tmp_path / "ranges.json"
    calibrate_model(trained, scenes, tmp_path / "a.onnx", tile_px=32, ranges=ranges)
    kept = ranges.read_bytes()
    calibrate_model(trained, scenes, tmp_path / "b.onnx", tile_px=32, method="percentile")
    monkeypatch.delattr("autoreg.calibration.calibrate.observe")
    calibrate_model(trained, scenes, tmp_path / "c.onnx", tile_px=32, method="percentile", ranges=ranges)
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes() != (tmp_path / "a.onnx").read_bytes()
    assert ranges.read_bytes() == kept


def test_ranges_of_something_else_are_refused(trained: Path, model: Path, scenes: list[Path], tmp_path: Path) -> None:
    ranges, output = tmp_path / "ranges.json", tmp_path / "b.onnx"
    calibrate_model(trained, scenes, tmp_path / "a.onnx", tile_px=32, ranges=ranges)
    with pytest.raises(ConfigError, match=r"ranges\.json are of another model .* give --ranges a new name"):
        calibrate_model(model, scenes, output, tile_px=32, ranges=ranges)
    with pytest.raises(ConfigError, match=r"are of another choice of tiles \(tiles [0-9a-f]{12}, expected"):
        calibrate_model(trained, scenes[:1], output, tile_px=32, ranges=ranges)
    content = json.loads(ranges.read_text())
    for text in ("{", "[]", "{}", json.dumps(content | {"version": 9}), json.dumps(content | {"activations": {"div": {}}})):
        ranges.write_text(text)
        with pytest.raises(ConfigError, match=r"ranges\.json holds no ranges of autoreg calibrate"):
            calibrate_model(trained, scenes, output, tile_px=32, ranges=ranges)
    del content["activations"]["div"]
    ranges.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"has no range of div"):
        calibrate_model(trained, scenes, output, tile_px=32, ranges=ranges)
    assert not output.exists()


def test_settings_out_of_range_are_refused_before_any_work(trained: Path, scenes: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "m.onnx"
    for settings, message in (
        ({"method": "max"}, "method is 'max', expected one of min-max, percentile, entropy, mse"),
        ({"tiles": 0}, "tiles is 0, expected 1 to"),
        ({"tile_px": 33}, "tile_px is 33, expected 2 to 4096, a multiple of the model's stride, 2"),
        ({"min_agreement": 99.0}, "min_agreement is 99, expected a share above 0, at most 1"),
        ({"min_agreement": float("nan")}, "min_agreement is nan"),
    ):
        with pytest.raises(ConfigError, match=message):
            calibrate_model(trained, scenes, output, **settings)
    with pytest.raises(ConfigError, match="there are no rasters"):
        calibrate_model(trained, [], output)
    with pytest.raises(ModelError, match=r"there is no model .*none\.onnx"):
        calibrate_model(tmp_path / "none.onnx", scenes, output)
    with pytest.raises(RasterError, match=r"grey\.tif has 1 band"):
        calibrate_model(trained, [save_raster(tmp_path / "grey.tif", noise(1, 64, 64))], output)
    with pytest.raises(OutputError, match="no folder"):
        calibrate_model(trained, scenes, tmp_path / "none" / "m.onnx")
    output.write_text("mine")
    with pytest.raises(OutputError, match="exists; use --overwrite"):
        calibrate_model(trained, scenes, output)
    assert output.read_text() == "mine"


def test_a_model_of_another_precision_is_refused(trained: Path, scenes: list[Path], tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    export_onnx(trained.with_name("checkpoint.pt"), half, precision="fp16")
    with pytest.raises(ModelError, match=r"half\.onnx computes in fp16, expected fp32"):
        calibrate_model(half, scenes, tmp_path / "m.onnx")
    calibrate_model(trained, scenes, tmp_path / "m.onnx", tile_px=32, tiles=4)
    with pytest.raises(ModelError, match=r"m\.onnx computes in int8, expected fp32"):
        calibrate_model(tmp_path / "m.onnx", scenes, tmp_path / "n.onnx")


def test_a_model_without_convolutions_is_refused(trained: Path, scenes: list[Path], tmp_path: Path) -> None:
    content = onnx.load(trained)
    for node in content.graph.node:
        if node.op_type == "Conv":  # the weights are no constants any more
            content.graph.node.add(op_type="Identity", input=[node.input[1]], output=[f"{node.input[1]}.same"])
            node.input[1] = f"{node.input[1]}.same"
    nodes = sorted(content.graph.node, key=lambda node: node.op_type != "Identity")
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del content.graph.node[:]
    content.graph.node.extend(copies)
    onnx.save(content, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"other\.onnx has no convolutions"):
        calibrate_model(tmp_path / "other.onnx", scenes, tmp_path / "m.onnx")


def test_a_model_that_normalises_each_scene_is_calibrated_on_what_it_sees(tmp_path: Path) -> None:
    path = save_random_checkpoint(tmp_path / "c.pt", stride=2)
    checkpoint = dataclasses.replace(load_checkpoint(path), settings={"normalisation": "scene"})
    save_checkpoint(checkpoint, path, overwrite=True)
    export_onnx(path, tmp_path / "m.onnx")
    dark = save_raster(tmp_path / "dark.tif", noise(2, 128, 128) // 4)
    bright = save_raster(tmp_path / "bright.tif", noise(2, 128, 128) // 4 * 4)
    largest = []
    for raster in (dark, bright):
        ranges = tmp_path / f"{raster.stem}.json"
        calibrate_model(
            tmp_path / "m.onnx", [raster], tmp_path / "8.onnx", tile_px=32, min_agreement=0.2, ranges=ranges, overwrite=True
        )
        largest.append([item["maximum"] for item in json.loads(ranges.read_text())["activations"].values()])
    # One is the other, four times as bright: rescaled, they are the same.
    np.testing.assert_allclose(largest[0], largest[1], rtol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [{"attention": True}, {"network": "F1"}, {"network": "F3"}, {"network": "F5", "stride": 4}, {"widths": "double"}],
    ids=lambda settings: " ".join(f"{name} {value}" for name, value in settings.items()),
)
def test_networks_of_all_kinds_become_legal_models(settings: dict[str, Any], scenes: list[Path], tmp_path: Path) -> None:
    config = load_config(None, {"classes": 4, "stride": 2, "max_width": 64, "crop_px": 32, "batch_size": 4, **settings})
    train_network(scenes, tmp_path / "c.pt", dataclasses.replace(config, steps=4, displacement_px=2, device="cpu"))
    export_onnx(tmp_path / "c.pt", tmp_path / "m.onnx")
    result = calibrate_model(tmp_path / "m.onnx", scenes, tmp_path / "8.onnx", tile_px=32, tiles=8, min_agreement=0.2)
    content = onnx.load(tmp_path / "8.onnx")
    check_layout(content)
    assert {item.precision for item in result.layers} == {"int8"}
    kinds = {node.op_type for node in content.graph.node}
    assert ("Softmax" in kinds) == ("attention" in settings)
    assert segment_raster(load_engine(tmp_path / "8.onnx"), scenes[0], tmp_path / "map.tif").pixels > 0


def test_the_command_reports_each_layer_and_info_shows_it(lame: Path, scenes: list[Path], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(lame.read_bytes())
    words = ("calibrate", "model.onnx", *scenes, "--method", "min-max", "--tile-px", 32)
    result = autoreg(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["layer", "computes", "in", "why"]
    row = next(line for line in lines if line.startswith("extractor.0.conv.conv "))
    assert row.split()[1:4] == ["fp32", "harm", "1:"]
    assert lines[-1] == "next: autoreg segment -m model.int8.onnx TILES..."
    described = autoreg("info", "model.int8.onnx", cwd=tmp_path).stdout
    assert "method min-max" in described
    assert "extractor.0.conv.conv fp32: harm 1: alone it keeps" in described
    as_json = autoreg(*words, "--json", "--overwrite", cwd=tmp_path)
    values = json.loads(as_json.stdout)
    assert values["parity"]["agreement"] >= values["min_agreement"] == MIN_AGREEMENT
    shown = json.loads(autoreg("info", "model.int8.onnx", "--json", cwd=tmp_path).stdout)
    assert shown["calibration"]["layers"] == values["layers"]
    assert shown["precision"] == "int8"
    assert shown["agreement"] == values["parity"]["agreement"]


def test_the_command_says_in_a_sentence_what_is_wrong(trained: Path, scenes: list[Path], tmp_path: Path) -> None:
    refused(autoreg("calibrate", trained, cwd=tmp_path), "Usage", status=2)
    output = ("-o", tmp_path / "m.onnx")
    refused(autoreg("calibrate", trained, *scenes, *output, "--method", "best"), "method is 'best', expected one of")
    refused(autoreg("calibrate", trained, scenes[0].parent, *output), "is a folder, expected an image file")
    refused(autoreg("calibrate", scenes[0], *scenes, *output), "is not an ONNX model")
    assert list(tmp_path.iterdir()) == []


def test_an_entry_that_is_not_valid_is_said_by_info(trained: Path, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"layers": [{}]}', '{"layers": 3}'):
        content = onnx.load(trained)
        content.metadata_props.add(key=CALIBRATION_KEY, value=text)
        onnx.save(content, tmp_path / "m.onnx")
        refused(autoreg("info", tmp_path / "m.onnx"), f"the model's {CALIBRATION_KEY} is not valid")

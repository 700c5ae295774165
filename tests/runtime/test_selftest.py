"""The selftest of a device, on those that are here; what only a GPU can show runs with -m gpu on a machine that has one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rasterio
from click.testing import CliRunner

from autoreg.calibration.calibrate import calibrate_model
from autoreg.cli import cli
from autoreg.errors import ConfigError, EngineError
from autoreg.export import export_onnx
from autoreg.runtime.devices import DEVICES, Device, check_device, find_gpus
from autoreg.runtime.engine import load_engine
from autoreg.runtime.measure.gpu_meter import GpuMeter
from autoreg.runtime.measure.selftest import (
    find_problems,
    repeat_noise,
    run_selftest,
    whole_px,
    why_untested,
    write_noise,
)
from autoreg.runtime.model_file import read_spec
from autoreg.runtime.parity import Parity
from autoreg.runtime.sample_tiles import make_noise
from autoreg.runtime.verify_tiling import TilingCheck, default_max_px
from autoreg.spec import METADATA_KEY, ModelSpec
from conftest import Models, noise, save_raster
from fake_cuda import driver
from fake_machine import Machine, make_machine  # noqa: F401  # a fixture

PARITY = Parity(1.0, 1.0, (1.0, 1.0), 0.0, 0.0, 100, 100)
EXACT = TilingCheck(300, 1, True, 9, 1, 1.0, 1000, 0, 0, 0.0, 0.0)


def test_a_device_that_says_what_it_should_passes(models: Models, tmp_path: Path) -> None:
    model, record = models(2, "float32"), tmp_path / "selftest.json"
    command = ["selftest", str(model), "--device", "openvino", "--seconds", "0.1", "-o", str(record)]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("passed\n")
    assert f"{model}: comparing with ONNX Runtime on the CPU" in done.stderr
    found = json.loads(record.read_text())
    (tested,) = found["models"]
    assert found["passed"]
    assert found["device"] == "openvino"
    assert found["machine"]["cores"] >= 1
    assert tested["engine"].startswith("OpenVINO ")
    assert tested["parity"]["agreement"] >= 0.999
    assert tested["parity"]["pixels"] > 100_000
    assert tested["untested"] is None
    assert all(check["labels"] for check in tested["tiling"])
    assert all(check["tiles"] > check["pieces"] for check in tested["tiling"]), "nothing was cut"
    assert tested["segment_mpx_s"] > 0
    assert tested["engine_mpx_s"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["selftest.json"]


def test_rasters_are_taken_if_they_are_given(models: Models, tmp_path: Path) -> None:
    raster = save_raster(tmp_path / "a.tif", noise(2, 1400, 1300))
    found = run_selftest([models(2, "uint8")], "cpu", rasters=[str(raster)], seconds=0.1)
    assert found.sources == (str(raster),)
    assert found.models[0].parity.pixels == 1400 * 1300, "not all of it was compared"
    assert found.passed


def test_tensorrt_is_tested_as_segment_runs_it(
    machine: Machine, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a raster that is longer than a tile, though it has fewer pixels."""
    launch = driver.cuGraphLaunch
    launches: list[None] = []

    def counted(*arguments: Any) -> Any:
        launches.append(None)
        return launch(*arguments)

    raster = save_raster(tmp_path / "a.tif", noise(2, 200, 1200))
    found = run_selftest([models(2, "uint8")], "tensorrt", rasters=[str(raster)], seconds=0.1)
    assert (found.passed, len(found.models[0].tiling) > 0) == (True, True)
    assert [options.tile_px for options in machine.built] == [None]
    monkeypatch.setattr(driver, "cuGraphLaunch", counted)
    assert run_selftest([models(2, "uint8")], "tensorrt", seconds=0.1).passed
    assert len(launches) > 20, "what was measured did not run as a graph"


def test_the_whole_pass_of_a_model_that_attends_fits_in_memory(models: Models) -> None:
    spec = dataclasses.replace(read_spec(models(2, "uint8").read_bytes(), "model"), receptive_field_px=None, crop_px=64)
    for device in ("cpu", "tensorrt"):
        assert whole_px(spec, device) ** 2 <= default_max_px(spec)


def test_noise_has_labels_enough_to_tell_engines_apart(trained: Path) -> None:
    """On noise of single pixels, a network that has learned something gives nearly all of them one label."""
    engine = load_engine(trained, device="cpu")
    labels = engine.label(make_noise(engine.spec, tile_px=256, count=2).images)
    shares = np.bincount(labels.ravel(), minlength=engine.spec.clusters) / labels.size
    assert (shares > 0.05).sum() >= 3


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_a_fast_device_gets_more_noise_of_the_same_kind(models: Models, tmp_path: Path, dtype: str) -> None:
    spec = read_spec(models(2, dtype).read_bytes(), "model")
    write_noise(tmp_path / "noise.tif", spec)
    with rasterio.open(tmp_path / "noise.tif") as dataset:
        noise, crs, transform = dataset.read(), dataset.crs, dataset.transform
    side = noise.shape[-1]
    for pixels, times in ((1e4, 1), (4 * side**2, 2), (1e12, 8)):
        with rasterio.open(repeat_noise(tmp_path / "noise.tif", spec, pixels)) as dataset:
            assert (dataset.width, dataset.height, dataset.dtypes) == (times * side, times * side, (dtype, dtype))
            assert (dataset.crs, dataset.transform) == (crs, transform)
            last = dataset.read(window=rasterio.windows.Window((times - 1) * side, (times - 1) * side, side, side))
        np.testing.assert_array_equal(last, noise)


def test_no_model_and_no_device(models: Models) -> None:
    with pytest.raises(ConfigError, match=r"there is no model to test with; give one"):
        run_selftest([], "cpu")
    if not find_gpus():
        with pytest.raises((EngineError, ImportError)):
            run_selftest([models(2, "uint8")], "cuda")


def test_what_is_not_as_it_should_be_is_a_problem() -> None:
    assert not list(find_problems("fp32", PARITY, [EXACT]))
    (words,) = find_problems("fp32", dataclasses.replace(PARITY, agreement=0.998), [EXACT])
    assert words.startswith("99.8000 % of 100 labels equal")
    assert words.endswith("expected at least 99.9 % to be those of ONNX Runtime on the CPU")
    assert not list(find_problems("int8", dataclasses.replace(PARITY, agreement=0.998), [EXACT]))
    between = dataclasses.replace(PARITY, agreement=0.98)  # as two libraries are that compute an INT8 model
    assert list(find_problems("int8", between, [EXACT]))
    assert not list(find_problems("int8", between, [EXACT], on_noise=True))
    assert list(find_problems("fp32", between, [EXACT], on_noise=True))
    assert list(find_problems("fp32", dataclasses.replace(PARITY, max_probability_difference=float("nan")), [EXACT]))


def test_rounding_at_a_tie_is_no_problem_and_an_error_is() -> None:
    tie = dataclasses.replace(EXACT, differing=3, max_margin=5e-5, largest_logit=10.0)
    assert not list(find_problems("fp32", PARITY, [tie]))
    for wrong in (
        dataclasses.replace(tie, max_margin=1e-3),
        dataclasses.replace(tie, max_margin=float("nan")),
        dataclasses.replace(tie, differing_nodata=1),
    ):
        (words,) = find_problems("fp32", PARITY, [wrong])
        assert "tiles of 300 px, batches of 1: 3 of 1000 labels are not those of one pass" in words
    assert not list(find_problems("fp16", PARITY, [dataclasses.replace(tie, max_margin=1e-3)]))
    blended = dataclasses.replace(tie, exact=False, max_margin=5.0)
    assert not list(find_problems("fp32", PARITY, [blended])), "attention depends on the tiling"


def test_tiles_that_were_not_compared_are_said(models: Models) -> None:
    spec = read_spec(models(2, "uint8").read_bytes(), "model")
    assert why_untested(spec, [EXACT], 1024) is None
    wide = dataclasses.replace(spec, receptive_field_px=2001)
    assert why_untested(wide, [], 1024) == (
        "a label depends on 2001 x 2001 px, so no tile is small enough to cut one pass, which has at most 1024 x 1024 px"
    )
    attending = dataclasses.replace(spec, receptive_field_px=None)
    assert str(why_untested(attending, [], 256)).startswith("the model looks at its whole tile, so no tile is small enough")
    empty, whole = dataclasses.replace(EXACT, labels=0), dataclasses.replace(EXACT, tiles=1, pieces=1)
    assert str(why_untested(spec, [empty, empty], 1024)).startswith("there is no data where they were compared")
    assert str(why_untested(spec, [whole, whole], 1024)).startswith("the raster is no larger than a tile")
    assert why_untested(spec, [whole, EXACT], 1024) is None


def test_a_model_that_sees_too_far_to_compare_tiles_does_not_pass_in_silence(models: Models, tmp_path: Path) -> None:
    content, record = onnx.load(models(2, "uint8")), tmp_path / "selftest.json"
    (entry,) = (item for item in content.metadata_props if item.key == METADATA_KEY)
    entry.value = dataclasses.replace(ModelSpec.from_json(entry.value), receptive_field_px=1001).to_json()
    onnx.save(content, tmp_path / "far.onnx")
    command = ["selftest", str(tmp_path / "far.onnx"), "--device", "cpu", "--seconds", "0.1", "-o", str(record)]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "  tiles against one pass: NOT TESTED, as a label depends on 1001 x 1001 px, so no tile" in done.stdout
    assert done.stdout.endswith("passed, save for what was not tested\n")
    (tested,) = json.loads(record.read_text())["models"]
    assert tested["tiling"] == []
    assert tested["untested"].startswith("a label depends on 1001 x 1001 px")


def test_a_problem_ends_with_status_1(models: Models, tmp_path: Path) -> None:
    """A model whose spec says that it sees less than it does: its tiles do not fit together."""
    content = onnx.load(models(2, "uint8"))
    (entry,) = (item for item in content.metadata_props if item.key == METADATA_KEY)
    entry.value = dataclasses.replace(ModelSpec.from_json(entry.value), receptive_field_px=1).to_json()
    onnx.save(content, tmp_path / "lying.onnx")
    done = CliRunner().invoke(cli, ["selftest", str(tmp_path / "lying.onnx"), "--device", "cpu", "--seconds", "0.1"])
    assert done.exit_code == 1
    assert "  PROBLEM: tiles of " in done.stdout
    assert done.stdout.endswith("FAILED\n")


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_said_of_one() -> None:
    with GpuMeter() as meter:
        np.zeros(10).sum()
    assert (meter.busy, meter.grown_bytes) == (None, None)


@pytest.mark.gpu
@pytest.mark.parametrize("device", [device for device in DEVICES if device.gpu], ids=lambda device: device.name)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_gpu_says_what_the_processor_says(
    device: Device, precision: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    try:
        check_device(device)
    except (EngineError, ImportError):
        pytest.skip(f"the device {device.name} is not here")
    path, trained = tmp_path / "model.onnx", request.getfixturevalue("trained")  # not for who is skipped
    if precision == "int8":
        calibrate_model(trained, request.getfixturevalue("scenes"), path, tile_px=32, tiles=20)
    else:
        export_onnx(trained.with_name("checkpoint.pt"), path, precision=precision)
    found = run_selftest([path], device.name, seconds=2)
    assert not found.models[0].problems
    assert found.models[0].busy is not None
    assert found.models[0].gpu_bytes

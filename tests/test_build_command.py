"""``autoreg build``, and the commands that run what it built or tell of it, on stand-ins for the library and the GPU."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner, Result
from rasterio import Affine

from autoreg.cli import cli
from autoreg.errors import AutoregError, ModelError
from autoreg.runtime.engines.tensorrt import TensorRtEngine, load_tensorrt, read_engine_file
from autoreg.runtime.engines.tensorrt.engine_file import sidecar_path, write_engine
from autoreg.runtime.model_file import read_spec
from autoreg.runtime.parity import Parity
from conftest import Models, noise, save_raster
from fake_machine import CAPABILITY, Machine, copy_model, make_machine  # noqa: F401  # fixtures
from fake_tensorrt import VERSION, make_engine
from forks import autoreg
from test_cli import refused
from test_imports import run

needs_rtx = pytest.mark.skipif(not importlib.util.find_spec("tensorrt_rtx"), reason="tensorrt_rtx is not installed")


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    place = {"crs": "EPSG:32633", "transform": Affine(2, 0, 500_000, 0, -2, 5_000_000)}
    return save_raster(tmp_path / "a.tif", noise(2, 300, 280), **place)


def call(*words: object) -> Result:
    """Run a command in this process, where the stand-ins are."""
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


def read_labels(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return np.asarray(dataset.read(1))


def test_it_says_what_it_built_and_what_is_next(machine: Machine, model: Path, tmp_path: Path) -> None:
    done = call("build", model, "--tile-px", 128, "--batch-size", 2)
    engine = model.with_suffix(".engine")
    first, second, third, fourth = done.stdout.splitlines()
    size = f"{engine.stat().st_size / 1e6:.1f} MB"
    assert first == f"{engine}: fp32, {size}, tensorrt {VERSION} for compute capability {CAPABILITY}, 2 x 128 x 128 px"
    assert second.endswith("compared with ONNX Runtime on the CPU, on noise")
    loaded = load_tensorrt(model, rebuild=False)
    assert isinstance(loaded, TensorRtEngine)
    assert third == f"memory of the GPU: {size}, and for each lane {loaded.lane_bytes / 1e6:.1f} MB"
    assert fourth == f"next: autoreg segment -m {model} --device tensorrt TILES..."
    with pytest.raises(AutoregError, match="exists; use --overwrite"):
        call("build", model)
    assert call("build", model, "--overwrite").exit_code == 0
    assert [options.batch_size for options in machine.built] == [2, 1]
    elsewhere = tmp_path / "elsewhere.engine"
    assert f"next: autoreg segment -m {elsewhere} --device" in call("build", model, "-o", elsewhere).stdout


def test_the_options_are_those_of_the_build(machine: Machine, model: Path, tmp_path: Path) -> None:
    words = ["--tile-px", 128, "--batch-size", 4, "--tf32", "--level", 2, "--workspace", "1GB"]
    target = tmp_path / "other.engine"
    done = call("build", model, "-o", target, "--timing-cache", tmp_path / "a.cache", *words, "--json")
    (options,) = machine.built
    assert (options.level, options.workspace_bytes, options.timing_cache) == (2, 10**9, tmp_path / "a.cache")
    found, described = json.loads(done.stdout), read_engine_file(target)
    assert found["gpu"] == machine.gpu
    assert (found["engine"], found["bytes"]) == (str(target), target.stat().st_size)
    assert (found["tile_shape"], found["batch_size"], found["tf32"]) == ([128, 128], 4, True)
    assert described.parity is not None
    assert found["parity"] == {**described.parity.as_dict(), "iou": list(described.parity.iou)}
    assert (described.batch_size, described.tf32) == (4, True)
    assert described.lane_bytes
    assert found["lane_bytes"] == described.lane_bytes


def test_an_engine_is_built_from_a_model_and_not_from_itself(machine: Machine, model: Path) -> None:
    call("build", model, "--tile-px", 128)
    engine = model.with_suffix(".engine")
    before = engine.read_bytes()
    with pytest.raises(ModelError, match=rf"{engine} is an engine already, .*; give the ONNX file .* such as {model}$"):
        call("build", engine, "--overwrite")
    assert (engine.read_bytes(), len(machine.built)) == (before, 1)


def test_segment_cuts_the_tiles_of_the_engine(
    machine: Machine,
    model: Path,
    raster: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    call("build", model, "--tile-px", 128, "--batch-size", 3)
    machine.built.clear()
    words = ["segment", raster, "-m", model, "--overwrite", "--device"]
    done = call(*words, "tensorrt", "-o", tmp_path / "gpu", "--json")
    assert json.loads(done.stdout)["engine"] == f"TensorRT {VERSION} on Stand-in"
    call(*words, "cpu", "-o", tmp_path / "cpu")
    assert np.mean(read_labels(tmp_path / "gpu/a.tif") == read_labels(tmp_path / "cpu/a.tif")) >= 0.999
    assert (machine.built, caplog.messages) == ([], [])

    again = ["-o", tmp_path / "gpu", "--batch-size", 2]
    with pytest.raises(AutoregError, match="was built for 3 x 128 x 128 px, and 2 x 128 x 128 px are wanted"):
        call(*words, "tensorrt", *again, "--no-rebuild")
    assert call(*words, "tensorrt", *again).exit_code == 0
    (message,) = caplog.messages
    assert "2 x 128 x 128 px are wanted, so it is built from" in message
    assert read_engine_file(model.with_suffix(".engine")).batch_size == 2


def test_segment_takes_an_engine_itself_and_fits_memory_with_its_tiles(
    machine: Machine,
    model: Path,
    raster: Path,
    tmp_path: Path,
) -> None:
    call("build", model, "--tile-px", 128)
    engine = model.with_suffix(".engine")
    done = call("segment", raster, "-m", engine, "-o", tmp_path / "out", "--max-memory", "8GB", "--json")
    assert json.loads(done.stdout)["engine"].startswith("TensorRT ")
    assert len(machine.built) == 1


def test_verify_compares_an_engine_with_its_model(machine: Machine, model: Path, raster: Path) -> None:
    call("build", model, "--tile-px", 128)
    engine = model.with_suffix(".engine")
    done = call("verify", model, engine, "--tiles", raster, "--device", "cpu")
    assert f"B  {engine}: fp32, TensorRT {VERSION} on Stand-in" in done.stdout
    assert done.exit_code == 0
    machine.wrong = True
    assert call("verify", model, engine, "--tiles", raster, "--device", "cpu").exit_code == 1
    machine.capability = "8.9"
    with pytest.raises(AutoregError, match=r"was built for GPUs of compute capability 9\.0, and the one here has 8\.9"):
        call("verify", model, engine, "--tiles", raster)
    assert len(machine.built) == 1


def test_bench_measures_an_engine_beside_its_model_and_leaves_it_alone(
    machine: Machine,
    model: Path,
    raster: Path,
) -> None:
    call("build", model, "--tile-px", 128, "--batch-size", 2)
    engine = model.with_suffix(".engine")
    before = engine.read_bytes()
    words = ["bench", model, engine, "--tiles", raster, "--seconds", 0.1, "--json"]
    rows = json.loads(call(*words, "--device", "cpu", "--device", "tensorrt").stdout)["rows"]
    found = {(Path(row["model"]).name, row["device"], row["batch_size"], row["lanes"]) for row in rows}
    assert {one for one in found if one[1] == "tensorrt"} == {
        *(("model.onnx", "tensorrt", 1, lanes) for lanes in (1, 2)),
        *(("model.engine", "tensorrt", 2, lanes) for lanes in (1, 2)),
    }
    assert all(row["agreement"] >= 0.999 for row in rows)
    assert engine.read_bytes() == before
    assert [(options.tile_px, options.batch_size) for options in machine.built] == [(128, 2), (128, 1)]
    with pytest.raises(
        AutoregError, match=r"model\.engine was built for tiles of 128 px, and those to measure on have 64 px"
    ):
        call(*words, "--tile-px", 64)


@needs_rtx
def test_a_build_server_needs_no_gpu(model: Path) -> None:
    words = ["build", model, "--library", "tensorrt_rtx", "--compute-capability", "8.6, 8.9", "--tile-px", 128]
    done = autoreg(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "for compute capability 8.6, 8.9, 1 x 128 x 128 px\nno label was compared" in done.stdout
    found = json.loads(autoreg(*words, "--overwrite", "--json", "-q").stdout)
    assert (found["library"], found["compute_capabilities"], found["parity"]) == ("tensorrt_rtx", ["8.6", "8.9"], None)
    assert "and for each lane more, which was not measured\n" in done.stdout
    assert found["lane_bytes"] is None


@needs_rtx
def test_ctrl_c_ends_it_and_leaves_nothing(model: Path) -> None:
    words = ["build", str(model), "--library", "tensorrt_rtx", "--compute-capability", "8.6"]
    program = [sys.executable, "-m", "autoreg", *words]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtensorrt_onnxparser" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "autoreg: interrupted"
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def test_without_a_library_it_says_how_to_install_one(model: Path) -> None:
    words = ["autoreg", "build", str(model)]
    code = f"import sys; sys.argv = {words!r}; from autoreg.cli import main; main()"
    for more, sentence in (
        ([], "tensorrt or tensorrt_rtx is not installed, and engines need one of them: pip install 'autoreg[tensorrt]', or"),
        (
            ["--library", "tensorrt"],
            "tensorrt is not installed, and engines of TensorRT need it: pip install 'autoreg[tensorrt]'",
        ),
        (["--library", "tensorrt_rtx"], "tensorrt_rtx is not installed, and engines of TensorRT-RTX need it: pip install"),
    ):
        result = run(code.replace(repr(words), repr([*words, *more])), set())
        assert result.returncode == 1
        assert result.stderr.startswith(f"autoreg: {sentence}")


@pytest.mark.parametrize("words", [["--batch-size", "0"], ["--level", "6"], ["--library", "lean"], ["--workspace", "much"]])
def test_what_no_library_can_do_is_a_usage_error(model: Path, words: list[str]) -> None:
    assert CliRunner().invoke(cli, ["build", str(model), *words]).exit_code == 2


@pytest.fixture
def engine(models: Models, tmp_path: Path) -> Path:
    """One of another machine: neither its GPU nor its library is here."""
    path, content = tmp_path / "m.engine", models(2, "uint8").read_bytes()
    described = make_engine(content, read_spec(content, "m"), (64, 96), 3, uint8_input=True)
    write_engine(path, *described, overwrite=False)
    return path


def test_info_tells_what_an_engine_is(engine: Path) -> None:
    found, spec = json.loads(autoreg("info", engine, "--json").stdout), read_engine_file(engine).spec
    assert (found["kind"], found["library"], found["version"]) == ("engine", "tensorrt", VERSION)
    assert (found["compute_capabilities"], found["gpu"], found["precision"]) == ([CAPABILITY], "Stand-in", "fp32")
    assert (found["tile_shape"], found["batch_size"], found["uint8_input"]) == ([64, 96], 3, True)
    assert (found["lane_bytes"], found["parity"]) == (None, None)
    assert (found["bands"], found["stride"]) == (list(spec.bands), spec.stride)
    assert [item["name"] for item in found["classes"]] == [item.name for item in spec.classes]
    assert found["sha256"] == hashlib.sha256(engine.read_bytes()).hexdigest()
    assert found["digest"] == "ok"
    lines = dict(line.split(maxsplit=1) for line in autoreg("info", engine).stdout.splitlines() if line[0] != " ")
    assert (lines["tile_shape"], lines["batch_size"], lines["digest"]) == ("64, 96", "3", "ok")
    assert lines["lane_bytes"] == "not measured, as no such GPU was there"
    assert lines["classes"] == f"{spec.classes[0].label} {spec.classes[0].name} {spec.classes[0].colour} (cluster 0)"


def test_info_tells_an_engine_of_all_gpus_of_a_kind_by_its_compute_capabilities(engine: Path) -> None:
    parity = Parity(0.9995, None, (1.0, None, 0.5, 0.9), 1e-3, 1e-5, 4096, 0)
    described = dataclasses.replace(read_engine_file(engine), gpu=None, parity=parity, lane_bytes=2_500_000)
    write_engine(engine, engine.read_bytes(), described, overwrite=True)
    said = autoreg("info", engine).stdout
    assert re.search(r"^gpu +any of these compute capabilities$", said, re.MULTILINE)
    assert re.search(r"^lane_bytes +2500000$", said, re.MULTILINE)
    assert re.search(r"^parity +agreement 0\.9995$", said, re.MULTILINE)


def test_info_tells_an_engine_that_was_exchanged(engine: Path) -> None:
    engine.write_bytes(b"another")
    done = autoreg("info", engine, "--json")
    assert done.returncode == 0
    assert "m.engine is not the engine that m.engine.json describes" in json.loads(done.stdout)["digest"]
    sidecar_path(engine).unlink()
    refused(autoreg("info", engine), "m.engine.json, which says what m.engine is, cannot be read")
    refused(autoreg("info", engine.with_name("none.engine")), "there is no engine")

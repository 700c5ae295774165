"""``autoreg segment --device``: what ran is what was asked for, and the map and the JSON line say what it was."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from autoreg.runtime.devices import find_gpus
from conftest import Models, noise, save_raster
from forks import autoreg

needs_no_gpu = pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU here")


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    return save_raster(
        tmp_path / "a.tif", noise(2, 300, 280), crs="EPSG:32633", transform=Affine(2, 0, 500_000, 0, -2, 5_000_000)
    )


def test_openvino_makes_the_map_of_onnx_runtime(models: Models, raster: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    maps = []
    for device, engine in (("cpu", "ONNX Runtime "), ("openvino", "OpenVINO ")):
        out = tmp_path / device
        options = ["-m", models(2, "uint8"), "--device", device, "-o", out, "--tile-px", 128, "--json"]
        done = autoreg("segment", raster, *options)
        assert (done.returncode, done.stderr) == (0, "")
        said = json.loads(done.stdout)["engine"]
        assert said.startswith(engine)
        with rasterio.open(out / "a.tif") as dataset:
            assert dataset.tags()["AUTOREG_ENGINE"] == said
            maps.append(dataset.read(1))
    assert np.mean(maps[0] == maps[1]) >= 0.999


def test_it_says_what_ran(models: Models, raster: Path, tmp_path: Path) -> None:
    done = autoreg("segment", raster, "-m", models(2, "uint8"), "--device", "cpu", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("run by ONNX Runtime ") and line.endswith(" on the CPU") for line in done.stderr.splitlines())


@needs_no_gpu
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--require-gpu"], "CUDAExecutionProvider|no GPU"),
        (["--device", "cuda"], "CUDAExecutionProvider|no GPU"),
        (["--device", "cpu", "--require-gpu"], "autoreg: the device cpu is no GPU, and one is required; use auto or cuda"),
    ],
)
def test_it_fails_rather_than_run_elsewhere(
    options: list[str], sentence: str, models: Models, raster: Path, tmp_path: Path
) -> None:
    refused = autoreg("segment", raster, "-m", models(2, "uint8"), *options, "-o", tmp_path / "out")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert any(part in line for part in sentence.split("|"))
    assert not (tmp_path / "out").exists()

"""Which device runs a model: what was asked for, or an error; and nobody is told of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoreg import load_engine
from autoreg.errors import AutoregError, ConfigError, EngineError
from autoreg.runtime.devices import DEVICE_NAMES, DEVICES, check_device, choose_device, find_gpus
from autoreg.runtime.engines.onnxruntime import OnnxRuntimeEngine
from conftest import Models
from test_imports import run


def is_there(name: str) -> bool:
    (device,) = (device for device in DEVICES if device.name == name)
    try:
        check_device(device)
    except AutoregError:
        return False
    return True


needs_no_gpu = pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU here")


def test_auto_takes_a_gpu_if_there_is_one_and_else_the_cpu() -> None:
    assert DEVICE_NAMES == ("auto", "cuda", "cpu", "openvino", "tensorrt")
    assert choose_device().name == ("cuda" if is_there("cuda") else "cpu")


@pytest.mark.parametrize("name", ["cuda", "cpu", "openvino", "tensorrt"])
def test_a_device_that_is_asked_for_is_taken_or_an_error(name: str) -> None:
    if is_there(name):
        assert choose_device(name).name == name
    else:
        with pytest.raises(AutoregError):
            choose_device(name)


@needs_no_gpu
def test_without_a_gpu_none_is_found(models: Models) -> None:
    sentence = r"no CUDAExecutionProvider .* pip install 'autoreg\[cuda\]'|the NVIDIA driver is not there or shows no GPU"
    for required in (False, True):
        with pytest.raises(EngineError, match=sentence):
            choose_device("cuda", require_gpu=required)
    with pytest.raises(EngineError, match=sentence):
        choose_device(require_gpu=True)
    with pytest.raises(EngineError, match=sentence):
        load_engine(models(2, "uint8"), device="cuda")


@pytest.mark.parametrize("name", ["cpu", "openvino"])
def test_what_is_no_gpu_is_refused_where_one_is_required(name: str) -> None:
    with pytest.raises(ConfigError, match=f"the device {name} is no GPU, and one is required; use auto or cuda"):
        choose_device(name, require_gpu=True)


def test_unknown_devices_are_refused(models: Models) -> None:
    with pytest.raises(ConfigError, match="there is no device 'tpu', expected one of auto, cuda, cpu, openvino, tensorrt"):
        load_engine(models(2, "uint8"), device="tpu")


@needs_no_gpu
def test_onnx_runtime_never_takes_the_cpu_instead(models: Models) -> None:
    path = models(2, "uint8")
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(
            EngineError, match=r"cannot use its CUDAExecutionProvider and would run a\.onnx on the CPU.*use the device"
        ),
    ):
        OnnxRuntimeEngine(path.read_bytes(), "a.onnx", provider="CUDAExecutionProvider")


@pytest.mark.parametrize(
    ("device", "library", "extra"),
    [
        ("cpu", "onnxruntime", "run"),
        ("openvino", "openvino", "openvino"),
        ("tensorrt", "tensorrt or tensorrt_rtx", "tensorrt"),
    ],
)
def test_a_missing_library_is_named_with_the_extra_of_the_device(device: str, library: str, extra: str) -> None:
    result = run(f"from autoreg.runtime.devices import choose_device; choose_device({device!r})", set())
    assert result.returncode == 1
    sentence = f"{library} is not installed, and the device {device} needs it: pip install 'autoreg[{extra}]'"
    assert result.stderr.splitlines()[-1] == f"autoreg.errors.MissingDependencyError: {sentence}"


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_the_library_tells_its_vendor_nothing(device: str, models: Models, tmp_path: Path) -> None:
    if not is_there(device):
        pytest.skip(f"{device} is not here")
    code = f"""
import socket, sys
class Closed(socket.socket):
    def connect(self, *_): raise AssertionError("a connection")
socket.socket = Closed
import autoreg
autoreg.load_engine({str(models(2, "uint8"))!r}, device={device!r})
assert "openvino_telemetry" not in sys.modules
"""
    environment = os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []

"""``autoreg doctor``: what is here, what is missing, and what ``auto`` takes."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from autoreg.cli import cli
from autoreg.runtime.devices import find_gpus
from autoreg.runtime.measure.fastest import remember_fastest
from forks import autoreg
from test_imports import run

DOCTOR = "import sys; sys.argv = ['autoreg', 'doctor', '--json']; from autoreg.cli import main\n"


def test_it_says_what_is_here() -> None:
    done = autoreg("doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["python"] == sys.version.split()[0]
    assert {"onnxruntime", "rasterio", "torch"} <= found["libraries"].keys()
    assert "CPUExecutionProvider" in found["providers"]
    assert found["devices"]["cpu"] == "ready"
    assert found["devices"].keys() == {"cuda", "cpu", "openvino", "tensorrt"}
    assert found["gpus"] == list(find_gpus())
    assert len(found["compute"]) == len(found["gpus"])
    assert found["missing"]["tensorrt"]["install"] == "pip install 'autoreg[tensorrt]'"


def test_it_says_so_in_words() -> None:
    done = autoreg("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("autoreg ")
    assert any(line.split() == ["cpu", "ready"] for line in lines)
    (auto,) = (line for line in lines if line.startswith("auto "))
    assert "takes c" in auto


def test_it_lists_the_models_for_which_auto_knows_the_fastest_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doctor(*options: str) -> str:
        return CliRunner().invoke(cli, ["doctor", *options]).stdout

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert json.loads(doctor("--json"))["measured"] == {}
    digests = ["0" * 64, "1" * 64]
    remember_fastest(dict(zip(digests, ("openvino", "cpu"), strict=True)))
    assert json.loads(doctor("--json"))["measured"] == {digests[0]: "openvino", digests[1]: "cpu"}
    lines = [line.split() for line in doctor().splitlines()]
    assert ["measured", digests[0], "openvino"] in lines
    assert [digests[1], "cpu"] in lines


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU here")
def test_without_a_gpu_it_says_why_and_fails_only_if_one_is_required() -> None:
    found = json.loads(autoreg("doctor", "--json").stdout)
    assert found["auto"] == {"device": "cpu", "reason": f"not cuda: {found['devices']['cuda']}"}
    failed = autoreg("doctor", "--require-gpu")
    assert failed.returncode == 1
    assert failed.stdout.startswith("autoreg ")
    assert failed.stderr == f"autoreg: there is no GPU to run models on: {found['devices']['cuda']}\n"


def test_without_any_library_it_says_how_to_install_them() -> None:
    result = run(DOCTOR + "main()", set())
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["auto"]["device"] is None
    assert found["providers"] == []
    assert found["devices"]["cpu"] == "onnxruntime is not installed, and the device cpu needs it: pip install 'autoreg[run]'"
    assert found["devices"]["openvino"].endswith("pip install 'autoreg[openvino]'")


def test_it_never_imports_torch() -> None:
    result = run(
        DOCTOR + "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules", {"onnxruntime", "openvino"}
    )
    assert result.returncode == 0, result.stderr

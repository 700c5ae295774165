"""What may be imported where; import-linter checks the modules, this checks the running interpreter."""

import subprocess
import sys

import pytest

from autoreg.optional import EXTRAS

# An import hook that lets autoreg find no third-party library but the named ones.
HIDE = """
import sys
allowed, optional = {allowed!r}, {optional!r}
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in optional - allowed:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
"""


def run(code: str, allowed: set[str]) -> subprocess.CompletedProcess[str]:
    hidden = HIDE.format(allowed=allowed, optional=set(EXTRAS))
    return subprocess.run([sys.executable, "-c", hidden + code], capture_output=True, text=True, check=False)


def test_importing_autoreg_needs_numpy_and_click_alone() -> None:
    result = run("import autoreg, autoreg.cli; assert autoreg.load_engine and autoreg.segment_raster", set())
    assert result.returncode == 0, result.stderr


def test_a_missing_library_is_named_with_its_extra() -> None:
    code = "import sys; sys.argv = ['autoreg', 'train', 'a.tif']; from autoreg.cli import main; main()"
    result = run(code, set())
    assert result.returncode == 1
    assert result.stderr == "autoreg: torch is not installed, and this needs it: pip install 'autoreg[train]'\n"


def test_segmenting_loads_neither_torch_nor_onnx(model: object, scenes: list[object], tmp_path: object) -> None:
    code = f"""
import autoreg
engine = autoreg.load_engine({str(model)!r})
autoreg.segment_raster(engine, {str(scenes[0])!r}, {str(tmp_path)!r} + "/map.tif")
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & {{"torch", "onnx", "scipy"}}, loaded
"""
    result = run(code, {"onnxruntime", "rasterio"})
    assert result.returncode == 0, result.stderr


def test_a_server_is_given_a_model_without_torch_onnx_or_an_engine(model: object, tmp_path: object) -> None:
    words = ["autoreg", "export", str(model), "--for", "triton", f"{tmp_path}/repository"]
    result = run(f"sys.argv = {words!r}; from autoreg.cli import main; main()", set())
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"], ["segment", "-h"], ["--version"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = f"sys.argv = ['autoreg', *{words!r}]; from autoreg.cli import main; main()"
    result = run(code, set())
    assert result.returncode == (2 if not words else 0), result.stderr

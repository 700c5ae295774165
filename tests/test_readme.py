"""What the README says is true: its commands run, its program runs, its tables are those of the records."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autoreg import load_engine

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize(
    "document", ["README.md", "docs/design.md", "docs/method.md", "docs/segment.md", "docs/deployment.md", "CONTRIBUTING.md"]
)
def test_its_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_the_tables_are_those_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import tables

    for path in tables.DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert "<!-- table" in text
        assert tables.render(text) == text


def test_the_settings_shown_are_valid() -> None:
    import tomllib

    from autoreg.train.config import config_from

    (text,) = blocks("toml")
    config_from(tomllib.loads(text), source="README")


def test_the_pipeline_and_the_programs_run(scenes: list[Path], tmp_path: Path) -> None:
    for folder, names in (("scenes", ("0", "1")), ("tiles", ("a",)), ("truth", ("a",))):
        (tmp_path / folder).mkdir()
        for name in names:
            source = scenes[0].with_name("truth0.tif") if folder == "truth" else scenes[0]
            (tmp_path / folder / f"{name}.tif").write_bytes(source.read_bytes())
    # The settings of the README, but for how long it takes; long enough that labels are no ties, which fp16 may break.
    (tmp_path / "train.toml").write_text("stride = 2\nsteps = 150\nbatch_size = 4\ncrop_px = 32\nlearning_rate = 2e-3\n")
    (pipeline,) = (block for block in blocks("sh") if block.startswith("autoreg train"))
    (program,) = blocks("python")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(["sh", "-e", "-c", pipeline], cwd=tmp_path, check=True, env=os.environ | {"PATH": path})
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    example = [sys.executable, str(ROOT / "examples" / "embedded.py"), "model.onnx", "tiles/a.tif"]
    output = subprocess.run(example, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    # The 5 of the truth, and one for each cluster that stands for none of them.
    classes = load_engine(tmp_path / "model.onnx").spec.classes
    assert len(classes) >= 6
    assert f"{len(classes)} classes from red, green, blue, nir, on ONNX Runtime" in output
    assert (tmp_path / "map.tif").exists()

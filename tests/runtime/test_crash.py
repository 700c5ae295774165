"""What is left of a segmentation that is killed, interrupted, or whose disk or input fails: nothing that looks finished."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from autoreg.raster.journal import journal_path
from conftest import Models, damage_raster, noise, save_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

AUTOREG = [sys.executable, "-m", "autoreg"]
KILLS = 20


@pytest.fixture(scope="module")
def model(models: Models) -> Path:
    """An untrained model: its maps are noise, too, and need some space."""
    return models(2, "uint8")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raster of which a segmentation takes a second or two."""
    image = noise(2, 1100, 2100)
    image[:, :600, 900:1500] = 0
    folder = tmp_path_factory.mktemp("crash")
    return save_raster(folder / "large.tif", image, tiled=True, blockxsize=256, blockysize=256, nodata=0, compress="deflate")


def segment(source: Path, model: Path, out: Path, *options: str) -> list[str]:
    return [*AUTOREG, "segment", str(source), "-m", str(model), "-o", str(out), "--tile-px", "150", "--json", *options]


def finish(*command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert "Traceback" not in done.stderr
    return done


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def begun(command: list[str], target: Path, size: int = 1000) -> Iterator[subprocess.Popen[str]]:
    """A segmentation that has something in its journal."""
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (journal_path(target).exists() and journal_path(target).stat().st_size > size):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        yield process


def test_however_often_it_is_killed_the_maps_are_those_of_an_uninterrupted_run(
    source: Path, model: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    options = ("--confidence", "--resume")
    assert finish(*segment(source, model, whole, *options)).returncode == 0
    expected = sum(path.stat().st_size for path in whole.glob("*.tif"))
    journal = journal_path(out / "large.tif")
    rng = random.Random(0)
    sizes = []
    for _ in range(KILLS):
        if (out / "large.tif").exists():
            shutil.rmtree(out)
        # Some before they have begun, most when they have gone on by something; what is done before is begun anew.
        enough = size_of(journal) + rng.uniform(-0.02, 0.1) * expected
        with subprocess.Popen(
            segment(source, model, out, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            while process.poll() is None and size_of(journal) < enough:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.02))
            process.kill()
        finished = [path for path in out.glob("*.tif") if not path.name.startswith(".")] if out.exists() else []
        for path in finished:
            assert path.read_bytes() == (whole / path.name).read_bytes()
        sizes.append(size_of(journal))
    assert len(set(sizes)) > KILLS / 3, "many of them went on"
    if (out / "large.tif").exists():
        shutil.rmtree(out)
    with begun(segment(source, model, out, *options), out / "large.tif", size=expected // 4) as process:
        process.kill()  # with a whole record, at the least
    done = finish(*segment(source, model, out, *options))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed"]
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert all(cog_validate(path, strict=True)[0] for path in out.glob("*.tif"))
    again = finish(*segment(source, model, out, *options))
    assert again.returncode == 0
    assert json.loads(again.stdout)["classes"] == json.loads(done.stdout)["classes"]


def test_a_kill_while_the_maps_appear_is_resumed(source: Path, model: Path, tmp_path: Path) -> None:
    command = segment(source, model, tmp_path, "--confidence", "--resume")
    assert finish(*command).returncode == 0
    labels, confidence = tmp_path / "large.tif", tmp_path / "large.confidence.tif"
    expected = [labels.read_bytes(), confidence.read_bytes()]
    labels.unlink()  # it would have appeared last
    done = finish(*command)
    assert done.returncode == 0, done.stderr
    assert [labels.read_bytes(), confidence.read_bytes()] == expected
    labels.unlink()
    other = finish(*command, "--probabilities")
    assert other.returncode == 3, "a map of another job is not this one's to replace"
    assert "large.confidence.tif exists; use --overwrite" in other.stderr
    assert confidence.read_bytes() == expected[1]


def test_ctrl_c_keeps_what_is_done(source: Path, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "large.tif"
    with begun(segment(source, model, tmp_path), target) as process:
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "large.tif is not finished; what is done is kept, go on with --resume" in err
    assert [path.name for path in tmp_path.iterdir()] == [".large.tif.journal"]
    refused = finish(*segment(source, model, tmp_path))
    assert refused.returncode == 3
    assert "was begun and not finished; use --resume to go on, or --overwrite" in refused.stderr
    assert finish(*segment(source, model, tmp_path, "--resume")).returncode == 0
    assert not journal_path(target).exists()


def test_two_processes_do_not_write_one_map(source: Path, model: Path, tmp_path: Path) -> None:
    with begun(segment(source, model, tmp_path), tmp_path / "large.tif") as process:
        os.kill(process.pid, signal.SIGSTOP)
        second = finish(*segment(source, model, tmp_path))
        os.kill(process.pid, signal.SIGCONT)
        assert second.returncode == 3
        assert "large.tif is being written by another process" in second.stderr
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert cog_validate(tmp_path / "large.tif", strict=True)[0]


def test_an_input_that_changes_has_no_map(source: Path, model: Path, tmp_path: Path) -> None:
    changing, out = Path(shutil.copy(source, tmp_path / "large.tif")), tmp_path / "out"
    with begun(segment(changing, model, out), out / "large.tif") as process:
        os.utime(changing, (1, 1))
        text, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "large.tif changed while it was segmented" in err
    assert "changed" in json.loads(text)["error"]
    assert list(out.iterdir()) == []


def test_an_input_that_vanishes_has_no_map(source: Path, model: Path, tmp_path: Path) -> None:
    changing, out = Path(shutil.copy(source, tmp_path / "large.tif")), tmp_path / "out"
    with begun(segment(changing, model, out), out / "large.tif") as process:
        changing.unlink()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "there is no file" in err
    assert list(out.iterdir()) == []


def test_a_block_that_does_not_decode_spoils_its_raster_alone(model: Path, tmp_path: Path) -> None:
    bad = save_raster(tmp_path / "bad.tif", noise(2, 700, 700) // 32, tiled=True, compress="deflate")
    good = save_raster(tmp_path / "good.tif", noise(2, 100, 200))
    damage_raster(bad)
    out = tmp_path / "out"
    done = finish(*AUTOREG, "segment", str(bad), str(good), "-m", str(model), "-o", str(out))
    assert done.returncode == 3
    assert "bad.tif is damaged" in done.stderr
    assert "1 of 2 rasters failed" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["good.tif", "good.tif.aux.xml"]


def test_a_full_disk_ends_in_a_sentence(source: Path, model: Path, tmp_path: Path) -> None:
    command = segment(source, model, tmp_path, "--resume")
    limited = ["bash", "-c", 'trap "" XFSZ; ulimit -f 200; exec "$@"', "--", *command]
    full = finish(*limited)
    assert full.returncode == 3
    assert "large.tif was not written: File too large; what is done is kept, go on with --resume" in full.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".large.tif.journal"]
    done = finish(*command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed"]
    with rasterio.open(tmp_path / "large.tif") as dataset:
        labels = dataset.read(1)
    assert (labels == 255).sum() == 600 * 600
    assert len(np.unique(labels)) > 2


def test_a_folder_that_cannot_be_written_is_named(source: Path, model: Path) -> None:
    done = finish(*segment(source, model, Path("/proc")))
    assert done.returncode == 3
    assert "/proc/large.tif cannot be written: " in done.stderr

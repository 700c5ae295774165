"""``autoreg segment`` as a user meets it: what it writes, what it says, what it refuses before any work."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
from rasterio import Affine
from rio_cogeo.cogeo import cog_validate

from autoreg import Outputs, TilingOptions, output
from autoreg.errors import ConfigError, OutputError
from autoreg.raster.journal import journal_path
from autoreg.runtime.engine import load_engine
from autoreg.runtime.memory import fit_memory
from conftest import Models, noise, save_raster
from forks import autoreg

PLACE = Affine(2, 0, 500_000, 0, -2, 5_000_000)


@pytest.fixture(scope="module")
def model(models: Models) -> Path:
    """An untrained model: its maps are noise, too, and need some space."""
    return models(2, "uint8")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two rasters side by side."""
    folder = tmp_path_factory.mktemp("pieces")
    image = noise(2, 200, 300)
    paths = []
    for name, left in (("a", 0), ("b", 150)):
        place = {"crs": "EPSG:32633", "transform": PLACE @ Affine.translation(left, 0)}
        paths.append(save_raster(folder / f"{name}.tif", image[:, :, left : left + 150], **place))
    return paths


def test_everything_that_can_be_written(model: Path, pieces: list[Path], tmp_path: Path) -> None:
    out, vector = tmp_path / "out", tmp_path / "deep" / "all.gpkg"
    options = ["--confidence", "--probabilities", "--quicklook", "--vector", vector, "--min-area", 100, "--simplify", 3]
    done = autoreg("segment", *pieces, "-m", model, "-o", out, *options)
    assert done.returncode == 0, done.stderr
    expected = [f"{name}.{kind}" for name in "ab" for kind in ("confidence.tif", "png", "probabilities.tif", "tif")]
    expected += [f"{name}.tif.aux.xml" for name in "ab"]
    assert sorted(path.name for path in out.iterdir()) == sorted(expected)
    for path in out.glob("*.tif"):
        assert cog_validate(path, strict=True) == (True, [], [])
    kinds = ("tif", "confidence.tif", "probabilities.tif")
    assert done.stdout.splitlines() == [*(f"{out / name}.{kind}" for name in "ab" for kind in kinds), str(vector)]
    pixels = 0
    for line in done.stderr.splitlines()[-4:]:
        name, number, count, unit, share, percent, area, metres = line.split()
        pixels += int(count.replace(",", ""))
        assert (name, unit, percent, metres) == ("cluster", "px", "%", "m2")
        assert float(share) == pytest.approx(100 * int(count.replace(",", "")) / 60_000, abs=0.01)
        assert int(area.replace(",", "")) == 4 * int(count.replace(",", ""))
        assert number in "0123"
    assert pixels == 60_000
    assert "100.00 % of the labels stayed when the model was converted" in done.stderr.splitlines()
    meta, _, geometries, fields = pyogrio.raw.read(vector)
    assert meta["crs"] == "EPSG:32633"
    assert len(geometries) > 10
    areas = dict(zip(meta["fields"], fields, strict=True))["area_m2"]
    assert areas.sum() == pytest.approx(240_000, rel=0.02)


def test_json_says_it_all(model: Path, pieces: list[Path], tmp_path: Path) -> None:
    done = autoreg("segment", *pieces, "-m", model, "--mosaic", tmp_path / "new" / "map.tif", "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    (line,) = map(json.loads, done.stdout.splitlines())
    assert line["source"] == "2 rasters"
    assert line["agreement"] == load_engine(model).spec.agreement >= 0.999
    assert line["map"] == str(tmp_path / "new" / "map.tif")
    assert (line["pixels"], line["tiling_dependent"], line["resumed"], line["further_maps"]) == (60_000, 0, False, [])
    with rasterio.open(line["map"]) as dataset:
        labels, tags = dataset.read(1), dataset.tags()
    counts = np.bincount(labels.ravel(), minlength=4)
    for item, count in zip(line["classes"], counts, strict=True):
        assert item == {"label": item["label"], "name": f"cluster {item['label']}", "pixels": count, "area_m2": 4.0 * count}
    assert tags["AUTOREG_SOURCE"] == "2 rasters"


def test_finished_maps_stay_if_they_are_of_the_same_job(model: Path, pieces: list[Path], tmp_path: Path) -> None:
    command = ["segment", *pieces, "-m", model, "-o", tmp_path, "--json"]
    assert autoreg(*command).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tif")}
    refused = autoreg(*command)
    assert refused.returncode == 1
    assert "a.tif (and 1 more) exists; use --overwrite to replace it, --resume to keep it" in refused.stderr
    # One process was killed when its map was whole, before it could clean up; another job has begun to replace b.tif.
    journals = [journal_path(tmp_path / path.name) for path in pieces]
    with rasterio.open(tmp_path / "a.tif") as dataset:
        journals[0].write_bytes(b"autoreg journal 1\n" + bytes.fromhex(dataset.tags()["AUTOREG_JOB_SHA256"]) + b"blocks")
    journals[1].write_bytes(b"autoreg journal 1\n" + bytes(32) + b"blocks")
    again = autoreg(*command, "--resume")
    assert again.returncode == 0, again.stderr
    assert all(json.loads(line)["resumed"] for line in again.stdout.splitlines())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tif")} == before
    assert [path.exists() for path in journals] == [False, True]
    # Another job: the confidence is wanted, too.
    other = autoreg(*command, "--resume", "--confidence")
    assert other.returncode == 3
    assert "a.tif exists; use --overwrite" in other.stderr


def test_nothing_is_lost_by_mistake(model: Path, pieces: list[Path], tmp_path: Path) -> None:
    for path in pieces:
        shutil.copy(path, tmp_path)
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "a.png").write_text("a picture of mine")
    for options, sentence in (
        (["-o", "."], "the map a.tif would replace a.tif; give another folder"),
        (["-o", "maps", "--quicklook"], "maps/a.png exists"),
        (["--mosaic", "b.tif", "--overwrite"], "the map b.tif would replace b.tif"),
        (["--vector", "all.shp"], "all.shp"),
        (["--min-area", "5"], "--min-area and --simplify are about polygons; give --vector FILE, too"),
        (["--max-memory", "10MB"], "a limit of 10 MB is too low for this model"),
    ):
        refused = autoreg("segment", "a.tif", "b.tif", "-m", model, *options, cwd=tmp_path)
        assert refused.returncode == 1, (options, refused)
        assert sentence in refused.stderr.splitlines()[0]
        assert len(refused.stderr.splitlines()) == 1
    assert autoreg("segment", "a.tif", "-m", model, "--max-memory", "much", cwd=tmp_path).returncode == 2
    assert (tmp_path / "maps" / "a.png").read_text() == "a picture of mine"
    for path in pieces:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_tiles_fit_into_memory_and_the_labels_stay(model: Path, pieces: list[Path], tmp_path: Path) -> None:
    engine = load_engine(model, threads=1)
    ample = fit_memory(engine, 10**10, TilingOptions())
    assert ample.tile_px is not None
    assert ample.tile_px >= 512
    with pytest.raises(ConfigError, match=r"a limit of 20 MB is too low .* expected at least \d+ MB; raise it") as refused:
        fit_memory(engine, 20 * 10**6, TilingOptions())
    enough = (int(re.findall(r"\d+", str(refused.value))[-1]) + 1) * 10**6
    assert fit_memory(engine, enough, TilingOptions()).tile_px
    with pytest.raises(ConfigError, match="is too low"):
        fit_memory(engine, enough, TilingOptions(), Outputs(confidence=True, probabilities=True))
    with pytest.raises(ConfigError, match="tiles of 40000 px"):
        fit_memory(engine, 2 * 10**9, TilingOptions(40_000))
    many = fit_memory(engine, 10**10, TilingOptions(batch_size=1000))
    assert many.batch_size == 1000
    assert many.tile_px is not None
    assert many.tile_px < ample.tile_px
    assert autoreg("segment", pieces[0], "-m", model, "-o", tmp_path / "limited", "--max-memory", "2 GB").returncode == 0
    assert autoreg("segment", pieces[0], "-m", model, "-o", tmp_path / "free").returncode == 0
    labels = []
    for name in ("limited", "free"):
        with rasterio.open(tmp_path / name / "a.tif") as dataset:
            labels.append(dataset.read(1))
    np.testing.assert_array_equal(*labels)


def test_the_memory_of_the_process_that_starts_it_does_not_count(model: Path, pieces: list[Path], tmp_path: Path) -> None:
    words = ["-m", "autoreg", "segment", pieces[0], "-m", model, "-o", tmp_path, "--device", "cpu", "--max-memory", "1GB"]
    command = [sys.executable, *map(str, words)]
    large = f"import subprocess; b'x' * 10**9; subprocess.run({command}, check=True)"
    subprocess.run([sys.executable, "-c", large], check=True, capture_output=True)


def test_the_process_stays_below_its_limit_with_batches(model: Path, tmp_path: Path) -> None:
    source = save_raster(tmp_path / "large.tif", noise(2, 2100, 2600), tiled=True, blockxsize=512, blockysize=512)
    command = ["segment", source, "-m", model, "-o", tmp_path / "out", "--overwrite", "--device", "cpu", "--batch-size", 16]
    limit_mb = int(0.9 * 1024 * autoreg(*command).peak_kib / 1e6)
    limited = autoreg(*command, "--max-memory", f"{limit_mb}MB")
    assert limited.returncode == 0, limited.stderr
    assert limited.peak_kib * 1024 <= limit_mb * 10**6


def test_the_disk_is_looked_at_before_the_work(tmp_path: Path) -> None:
    output.check_space(tmp_path / "map.tif", 1000)
    with pytest.raises(OutputError, match=r"map\.tif needs at least 1000000000000 MB, but its disk has \d+ MB free"):
        output.check_space(tmp_path / "map.tif", 10**18)


def test_a_raster_that_is_too_far_to_be_seen_changes_no_map(model: Path, tmp_path: Path) -> None:
    image = noise(2, 100, 1600)
    paths = []
    for left in (0, 800, 1200):
        place = {"crs": "EPSG:32633", "transform": PLACE @ Affine.translation(left, 0)}
        width = 800 if left == 0 else 400
        paths.append(save_raster(tmp_path / f"{left}.tif", image[:, :, left : left + width], **place))
    command = ["-m", model, "-o", tmp_path / "out", "--json", "--resume"]
    assert autoreg("segment", *paths[:2], *command).returncode == 0
    more = autoreg("segment", *paths, *command)
    assert more.returncode == 3
    first, second, third = map(json.loads, more.stdout.splitlines())
    assert first["resumed"]  # its map stays
    assert "exists" in second["error"]  # its new neighbour would change it
    assert not third["resumed"]

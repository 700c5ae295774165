"""Odd, damaged and hostile rasters, and damaged journals: the right map, or one sentence; soon, and in little memory."""

import contextlib
import functools
import io
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rio_cogeo.cogeo import cog_validate

from autoreg import Engine, load_engine, segment_array, segment_raster
from autoreg.cli import main
from autoreg.errors import OutputError
from autoreg.raster.gdal import georeference_optional
from autoreg.raster.journal import journal_path
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from conftest import EDGE, RANGES, Models, needs_edge, noise, save_raster
from forks import autoreg
from mutations import MEMORY_LIMIT_KIB, look_at_mutations

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

MUTATIONS = 300
JOURNALS = 60
SECONDS_EACH = 60
WHOLE_PX = 8_000_000
"""Rasters of at most so many pixels are compared with one pass."""

SENTENCES = {
    "hostile_text_named": "cannot be read as an image",
    "hostile_truncated_200bytes": "cannot be read as an image",
    "hostile_truncated_half_of_real_cog": "is damaged",
    "hostile_zero_bytes": "cannot be read as an image",
    "rasterio_corrupt": "is damaged",
    "riotiler_cog_cmap": "is a palette image",
}
"""What is said of those that have no map."""


def is_one_sentence(said: str) -> bool:
    """Whether ``said`` says of the only raster what is wrong with it, and that it failed."""
    lines = said.splitlines()
    return len(lines) == 2 and lines[0].startswith("autoreg: ") and lines[1] == "autoreg: 1 of 1 rasters failed"


def kind_of(path: Path) -> tuple[int, str]:
    """Number of bands and type of the pixels of a model that takes a raster for what it says it is."""
    try:
        with georeference_optional(), rasterio.open(path) as dataset:
            has_alpha = dataset.colorinterp[-1].name == "alpha"
            dtype = dataset.dtypes[0]
            return dataset.count - has_alpha, dtype if dtype in RANGES else "uint8"
    except rasterio.errors.RasterioIOError:
        return 3, "uint8"


def naive_pixels(path: Path, bands: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The pixels of a raster, and which of them are data: some band has another value than nodata, and all are finite."""
    with georeference_optional(), rasterio.open(path) as dataset:
        pixels = dataset.read(list(range(1, bands + 1)))
        differs = [
            np.ones(pixels.shape[1:], np.bool_) if value is None else band != value
            for band, value in zip(pixels, dataset.nodatavals, strict=False)
        ]
        valid = np.any(differs, axis=0) & np.isfinite(pixels).all(axis=0)
        if dataset.count > bands:
            valid &= dataset.read(bands + 1) > 0
        if "per_dataset" in [flag.name for flag in dataset.mask_flag_enums[0]]:
            valid &= dataset.read_masks(1) > 0
        return pixels, valid


@needs_edge
@pytest.mark.parametrize("path", sorted(EDGE.glob("*.tif")), ids=lambda path: path.stem)
def test_odd_files(models: Models, path: Path, tmp_path: Path) -> None:
    bands, dtype = kind_of(path)
    model = models(bands, dtype)
    start = time.monotonic()
    done = autoreg("segment", path, "-m", model, "-o", tmp_path / "out", "--json")
    assert time.monotonic() - start < SECONDS_EACH
    assert done.peak_kib < MEMORY_LIMIT_KIB
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    if sentence := SENTENCES.get(path.stem):
        assert done.returncode == 3
        assert is_one_sentence(done.stderr), done.stderr
        assert sentence in done.stderr
        assert files == []
        return
    assert (done.returncode, done.stderr) == (0, "")
    assert files == [path.name, f"{path.name}.aux.xml"]
    assert cog_validate(tmp_path / "out" / path.name, strict=True)[0]
    said = json.loads(done.stdout)
    with (
        georeference_optional(),
        rasterio.open(path) as source,
        rasterio.open(tmp_path / "out" / path.name) as dataset,
    ):
        assert (dataset.height, dataset.width) == (source.height, source.width)
        assert dataset.crs == source.crs
        assert dataset.profile["transform"] == source.profile["transform"]
        assert len(dataset.gcps[0]) == len(source.gcps[0])
        if dataset.height * dataset.width > WHOLE_PX:
            assert path.stem == "hostile_huge_sparse_250000x250000x4"
            assert said["pixels"] == 0
            return
        labels = dataset.read(1)
    engine = load_engine(model, threads=1)
    pixels, valid = naive_pixels(path, bands)
    np.testing.assert_array_equal(labels, segment_array(engine, pixels, valid))
    np.testing.assert_array_equal(labels == 255, ~valid)
    assert said["pixels"] == valid.sum()


def test_no_damage_is_a_crash_a_hang_or_a_map_that_is_wrong(models: Models, tmp_path: Path) -> None:
    look_at_mutations(functools.partial(segment_damaged, models(3, "uint8")), tmp_path, MUTATIONS)


@functools.cache
def engine_of(model: Path) -> Engine:
    return load_engine(model, threads=1)


def segment_damaged(model: Path, path: Path) -> None:
    """Run the command in this process."""
    out = path.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    said, printed = io.StringIO(), io.StringIO()
    sys.argv = ["autoreg", "segment", str(path), "-m", str(model), "-o", str(out), "--json"]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        main()
    files = sorted(file.name for file in out.iterdir())
    if ended.value.code == 3:
        assert is_one_sentence(said.getvalue()), said.getvalue()
        assert files == []
        return
    assert ended.value.code == 0, said.getvalue()
    name = f"{path.stem}.tif"
    assert files == [name, f"{name}.aux.xml"]
    with RasterReader(path, bands=3) as raster:
        assert raster.height * raster.width <= WHOLE_PX
        pixels, valid = raster.read(Window(0, 0, raster.height, raster.width))
    with georeference_optional():
        assert cog_validate(out / name, strict=raster.width > 1)[0]
        with rasterio.open(out / name) as dataset:
            np.testing.assert_array_equal(dataset.read(1), segment_array(engine_of(model), pixels, valid))


def test_no_damage_of_a_journal_changes_the_map(models: Models, tmp_path: Path) -> None:
    engine = engine_of(models(2, "uint8"))
    image = noise(2, 9, 3000)
    image[:, :, 1600:2100] = 0
    source = save_raster(tmp_path / "a.tif", image, nodata=0)
    segment_raster(engine, source, tmp_path / "whole.tif")
    whole = (tmp_path / "whole.tif").read_bytes()
    target = tmp_path / "map.tif"

    def interrupt(done: int, total: int) -> None:
        if done > total * 2 // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_raster(engine, source, target, progress=interrupt)
    journal = journal_path(target)
    kept = journal.read_bytes()
    assert 500 < len(kept) < 100_000
    rng = np.random.default_rng(0)
    begun = []
    # Of each part of the journal some: what it is of, and each of the records with its head.
    for place in sorted({*range(0, 100, 5), *rng.integers(0, len(kept), JOURNALS)}):
        damaged = bytearray(kept)
        damaged[place] ^= 1 << int(rng.integers(8))
        for content in (bytes(damaged), kept[:place]):
            journal.write_bytes(content)
            if place < 50 and len(content) > 50:  # it looks like that of another job
                with pytest.raises(OutputError, match="was begun with another input, model or setting; use --overwrite"):
                    segment_raster(engine, source, target, resume=True)
                assert not target.exists()
                continue
            segmented = segment_raster(engine, source, target, resume=True)
            assert target.read_bytes() == whole
            assert not journal.exists()
            target.unlink()
            begun.append(segmented.resumed)
    assert {True, False} == set(begun)

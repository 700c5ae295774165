import logging
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling

from autoreg.errors import RasterError
from autoreg.network.checkpoint import load_checkpoint
from autoreg.raster.gdal import georeference_optional
from autoreg.raster.reader import RasterReader
from autoreg.raster.window import Window
from autoreg.train import TrainConfig, data, scenes, train_network
from autoreg.train.data import BATCHES_AHEAD, CROPS_PER_TURN, TURNS_AHEAD, Batch, read_batches
from autoreg.train.scenes import THREADS, estimate_normalisation, open_scenes
from conftest import damage_raster, noise, save_raster

TILED: dict[str, Any] = {"tiled": True, "blockxsize": 16, "blockysize": 16}


def batches(
    paths: list[Path] | list[str],
    count: int,
    start: int = 0,
    crop_px: int = 16,
    batch_size: int = 4,
    seed: int = 0,
    part: list[int] | None = None,
) -> list[Batch]:
    opened = open_scenes(paths, crop_px=crop_px)
    fill = np.full(len(opened.bands), 9.0)
    stream = read_batches(opened, crop_px=crop_px, batch_size=batch_size, fill=fill, seed=seed, start=start, part=part)
    return list(islice(stream, count))


def assert_same(got: list[Batch], expected: list[Batch]) -> None:
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.valid, other.valid)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Window]:
    """Every window that is read."""
    seen: list[Window] = []
    read = RasterReader.read

    def watched(raster: RasterReader, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        seen.append(window)
        return read(raster, window)

    monkeypatch.setattr(RasterReader, "read", watched)
    return seen


def test_batches_are_crops_of_the_scenes(tmp_path: Path) -> None:
    image = np.arange(64 * 48, dtype=np.uint16).reshape(1, 64, 48)
    path = save_raster(tmp_path / "a.tif", image, **TILED)
    for images, valid in batches([path], 60):
        assert (images.shape, valid.shape) == ((4, 1, 16, 16), (4, 16, 16))
        assert valid.all()
        for crop in images:
            row, col = divmod(int(crop[0, 0, 0]), 48)
            np.testing.assert_array_equal(crop, image[:, row : row + 16, col : col + 16])


def test_every_pixel_can_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "SUPERBLOCK_PX", 32)
    image = np.arange(70 * 90, dtype=np.uint16).reshape(1, 70, 90)
    path = save_raster(tmp_path / "a.tif", image, **TILED)
    seen = np.concatenate([images.ravel() for images, _ in batches([path], 900, crop_px=30)])
    assert len(np.unique(seen)) == image.size


def test_rasters_are_drawn_by_area(tmp_path: Path) -> None:
    sizes = (20, 40, 200)
    paths = [save_raster(tmp_path / f"{size}.tif", np.full((1, size, size), size, np.uint8)) for size in sizes]
    seen = np.concatenate([images[:, 0, 0, 0] for images, _ in batches(paths, 2 * CROPS_PER_TURN, batch_size=300)])
    shares = np.array([np.mean(seen == size) for size in sizes])
    areas = np.square(sizes)
    np.testing.assert_allclose(shares, areas / areas.sum(), atol=0.03)


def test_the_crops_of_a_batch_come_from_many_places_and_move_on_in_turns(tmp_path: Path, reads: list[Window]) -> None:
    paths = [save_raster(tmp_path / f"{index}.tif", np.full((1, 32, 32), index, np.uint8)) for index in range(50)]
    stream = batches(paths, 6 * CROPS_PER_TURN, batch_size=CROPS_PER_TURN)
    origins = np.array([images[:, 0, 0, 0] for images, _ in stream])
    assert min(len(set(batch)) for batch in origins) > CROPS_PER_TURN // 2
    assert ((origins[1:] != origins[:-1]).sum(axis=1) <= 1).all()  # one place is left for the next, and so read, at a time
    assert (origins[CROPS_PER_TURN:] != origins[:-CROPS_PER_TURN]).mean() > 0.9
    assert len(reads) <= 7 * CROPS_PER_TURN + BATCHES_AHEAD + TURNS_AHEAD + 1


def test_the_stream_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    paths = [save_raster(tmp_path / f"{seed}.tif", noise(2, 64, 64, seed=seed)) for seed in range(5)]
    all_of_them = batches(paths, 60)
    assert_same(batches(paths, 9, start=51), all_of_them[51:])
    assert any((a.images != b.images).any() for a, b in zip(all_of_them, batches(paths, 60, seed=1), strict=True))


def test_a_part_of_the_batch_is_read_alone(tmp_path: Path, reads: list[Window]) -> None:
    paths = [save_raster(tmp_path / f"{seed}.tif", noise(2, 64, 64, seed=seed)) for seed in range(5)]
    whole = batches(paths, 30, batch_size=40, start=7)
    needed = len(reads)
    reads.clear()
    part = batches(paths, 30, batch_size=40, start=7, part=[39, 3, 11])
    assert_same(part, [Batch(images[[39, 3, 11]], valid[[39, 3, 11]]) for images, valid in whole])
    assert needed >= 80
    assert len(reads) <= 9 + TURNS_AHEAD + 1


def test_pixels_without_data_are_filled_and_marked(tmp_path: Path) -> None:
    image = noise(2, 64, 64) // 2 + 1
    image[:, :, :20] = 0
    found = batches([save_raster(tmp_path / "a.tif", image, nodata=0)], 20)
    assert any(not valid.all() for _, valid in found)
    for images, valid in found:
        assert (images.transpose(0, 2, 3, 1)[~valid] == 9).all()
        assert (images.transpose(0, 2, 3, 1)[valid] != 0).all()
        assert valid.mean(axis=(1, 2)).min() >= 0.5


def test_a_scene_that_is_nearly_all_nodata_is_found_in_its_overview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[Window]
) -> None:
    monkeypatch.setattr(scenes, "SUPERBLOCK_PX", 64)
    image = np.zeros((1, 2048, 2048), np.uint8)
    image[:, 1000:1200, 300:500] = noise(1, 200, 200) // 2 + 1  # 1 % of it
    path = save_raster(tmp_path / "a.tif", image, nodata=0, compress="deflate", tiled=True, blockxsize=64, blockysize=64)
    plain = batches([path], 2 * CROPS_PER_TURN)
    searched = len(reads)
    reads.clear()
    with georeference_optional(), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4, 8, 16], Resampling.average)
    found = batches([path], 2 * CROPS_PER_TURN)
    assert all(valid.mean() >= 0.5 for _, valid in [*plain, *found])
    assert len(reads) < 100
    assert searched <= 32 * 32 + len(reads)  # without an overview, no super-block is looked at twice in vain


def test_scenes_without_a_crop_of_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_TRIES", 50)
    image = np.zeros((1, 64, 64), np.uint8)
    image[:, ::3] = 5
    with pytest.raises(RasterError, match="no crop of 16 px with 50 % data was found in 50 places of 1 rasters"):
        batches([save_raster(tmp_path / "a.tif", image, nodata=0)], 1)


def test_a_damaged_block_is_replaced_by_another_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scenes, "SUPERBLOCK_PX", 64)
    image = noise(2, 256, 256) // 2 + 1
    tiles: dict[str, Any] = {"compress": "deflate", "tiled": True, "blockxsize": 64, "blockysize": 64}
    broken = damage_raster(save_raster(tmp_path / "broken.tif", image, **tiles))
    truncated = save_raster(tmp_path / "truncated.tif", image, **tiles)
    truncated.write_bytes(truncated.read_bytes()[:20_000])
    whole = save_raster(tmp_path / "whole.tif", image + 128, **tiles)
    paths = [broken, truncated, whole]
    opened = open_scenes(paths, crop_px=16)
    stream = read_batches(opened, crop_px=16, batch_size=4, fill=np.zeros(2), seed=0)
    with caplog.at_level(logging.WARNING, logger="autoreg"):
        found = list(islice(stream, 80))
        stream.close()
        opened.report_skipped()
    messages = [record.getMessage() for record in caplog.records if record.name == "autoreg"]
    assert_same(batches(paths, 30, start=50), found[50:])
    assert set(opened.skipped) <= {str(broken), str(truncated)}
    assert str(broken) in opened.skipped
    assert len(messages) == len(opened.skipped) + 1  # once for each, and the count
    assert any("broken.tif is damaged" in message for message in messages)
    firsts = np.concatenate([images[:, 0, 0, 0] for images, _ in found])
    assert (firsts < 129).any()  # what is sound of a damaged raster is used
    windows = {crop.tobytes() for images, _ in found for crop in images}
    assert len(windows) > 100


def test_rasters_that_vanish_are_skipped(tmp_path: Path) -> None:
    paths = [save_raster(tmp_path / f"{index}.tif", noise(1, 64, 64, seed=index)) for index in range(2)]
    opened = open_scenes(paths, crop_px=16)
    paths[0].unlink()
    stream = read_batches(opened, crop_px=16, batch_size=8, fill=np.zeros(1), seed=0)
    next(stream)
    stream.close()
    assert list(opened.skipped) == [str(paths[0])]


def test_each_scene_gets_the_statistics_of_all_of_them(tmp_path: Path) -> None:
    base = noise(2, 300, 300).astype(np.uint16)
    images = [base + 50, base * 9 + 4000, base * 100 + 20_000]
    images[2][:, :90] = 0
    paths = [save_raster(tmp_path / f"{index}.tif", image, nodata=0) for index, image in enumerate(images)]
    opened = open_scenes(paths, crop_px=200)
    mean, std = np.array([1000.0, 2000.0]), np.array([100.0, 50.0])
    stream = read_batches(opened, crop_px=200, batch_size=30, fill=mean, seed=0, scene_std=std)
    (found, valid), second = next(stream), next(stream)
    stream.close()
    later = read_batches(opened, crop_px=200, batch_size=30, fill=mean, seed=0, scene_std=std, start=1)
    assert_same([next(later)], [second])
    later.close()
    raw, _ = batches(paths, 1, crop_px=200, batch_size=30)[0]
    origins = np.digitize(raw.max(axis=(1, 2, 3)), [400, 8000])
    assert set(origins) == {0, 1, 2}
    for crop, raw_crop, data_there, origin in zip(found, raw, valid, origins, strict=True):
        image = images[origin]
        pixels = image[:, (image != 0).any(axis=0)].astype(np.float64)
        scale = std / pixels.std(axis=1)
        expected = (raw_crop - pixels.mean(axis=1)[:, None, None]) * scale[:, None, None] + mean[:, None, None]
        np.testing.assert_allclose(crop[:, data_there], expected[:, data_there], atol=0.02)
        assert (crop[:, ~data_there] == mean[:, None]).all()


def test_normalisation_by_scene_is_a_setting_that_the_checkpoint_keeps(tmp_path: Path) -> None:
    base = noise(2, 64, 64) // 4
    paths = [save_raster(tmp_path / f"{gain}.tif", base * gain) for gain in (1, 4)]
    options: dict[str, Any] = {"stride": 2, "steps": 1, "batch_size": 4, "crop_px": 32, "displacement_px": 2}
    train_network(paths, tmp_path / "c.pt", TrainConfig(normalisation="scene", device="cpu", **options))
    checkpoint = load_checkpoint(tmp_path / "c.pt")
    assert checkpoint.normalisation == "scene"
    mean, _ = estimate_normalisation(open_scenes(paths, crop_px=32))
    assert np.abs(checkpoint.samples.numpy().mean(axis=(2, 3)) - mean).max() < 15  # raw ones would be 40 off


_SERVER = """
import http.server, os, pathlib, re, sys

class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        path = pathlib.Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\\d+)-(\\d+)", self.headers.get("Range", ""))
        if not wanted or not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        part = content[int(wanted[1]) : int(wanted[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {wanted[1]}-{int(wanted[1]) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

os.chdir(sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
"""Serves parts of files, as object stores do. A process of its own: GDAL may hold Python's lock while it waits."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    command = [sys.executable, "-c", _SERVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        yield f"127.0.0.1:{process.stdout.readline().strip()}"
        process.terminate()


def test_rasters_may_be_remote_or_packed(tmp_path: Path, server: str) -> None:
    paths = [save_raster(tmp_path / f"{index}.tif", noise(2, 64, 64, seed=index), **TILED) for index in range(2)]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    expected = batches(paths, 30)
    for names in (
        [f"http://{server}/{path.name}" for path in paths],
        [f"/vsicurl/http://{server}/{path.name}" for path in paths],
        [f"/vsizip/{tmp_path}/a.zip/{path.name}" for path in paths],
        [f"/vsizip//vsicurl/http://{server}/a.zip/{path.name}" for path in paths],
    ):
        assert_same(batches(names, 30), expected)
    with pytest.raises(RasterError, match=r"none\.tif cannot be read as an image"):
        open_scenes([f"http://{server}/none.tif"], crop_px=16)


def test_memory_is_bounded_whatever_the_rasters_are(tmp_path: Path) -> None:
    crop_px, batch_size, bands, side = 64, 6, 3, 2048
    image = np.broadcast_to(noise(1, side, side), (bands, side, side))
    tiles: dict[str, Any] = {"tiled": True, "blockxsize": 256, "blockysize": 256}
    paths = [save_raster(tmp_path / f"{index}.tif", image, interleave="pixel", **tiles) for index in range(3)]
    del image
    opened = open_scenes(paths, crop_px=crop_px)
    crop = bands * crop_px**2
    superblock = (bands + 1) * 1024**2
    turns = (batch_size + TURNS_AHEAD + 1) * CROPS_PER_TURN * (crop + crop_px**2)
    bound = turns + THREADS * superblock + (BATCHES_AHEAD + 2) * batch_size * (4 * crop + crop_px**2)
    stream = read_batches(opened, crop_px=crop_px, batch_size=batch_size, fill=np.zeros(bands), seed=0)
    tracemalloc.start()
    try:
        for _ in islice(stream, 3 * CROPS_PER_TURN):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        stream.close()
    assert peak < 1.25 * bound + 2**20

"""Rasters that are damaged or meant to do harm: each is read rightly, or refused in one sentence, soon, in little memory."""

import faulthandler
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from autoreg.errors import AutoregError
from autoreg.raster.reader import RasterReader, georeference_optional
from autoreg.raster.window import Window

EDGE = Path(__file__).resolve().parents[3] / "shared/data/edge"
MUTATIONS = 240
PROCESSES = 2
SECONDS_EACH = 20
MEMORY_LIMIT_KIB = 2**20
SIZE_PX = 80
WHOLE_PX = 4_000_000
"""Rasters of at most so many values are read whole."""

FLAVOURS: dict[str, dict[str, Any]] = {
    "strips.tif": {},
    "deflate.tif": {"compress": "deflate", "tiled": True, "blockxsize": 32, "blockysize": 32, "nodata": 0},
    "lzw.tif": {"compress": "lzw", "interleave": "band", "bigtiff": "yes"},
    "jpeg.tif": {"compress": "jpeg", "photometric": "YCBCR", "tiled": True, "blockxsize": 32, "blockysize": 32},
    "big.tif": {"endianness": "big", "compress": "zstd", "predictor": 2},
    "a.png": {"driver": "PNG"},
    "a.jpg": {"driver": "JPEG"},
}


def windows(raster: RasterReader) -> Iterator[Window]:
    bottom, right = max(0, raster.height - 50), max(0, raster.width - 50)
    for row, col in ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)):
        yield Window(row, col, 64, 64)
    if raster.height * raster.width * len(raster.bands) <= WHOLE_PX:
        yield Window(0, 0, raster.height, raster.width)


def look(path: Path) -> str:
    """Read ``path`` in several windows, and return what it is: a raster, or the sentence that refuses it."""
    try:
        with RasterReader(path) as raster:
            assert isinstance(raster.georeference, dict)
            for window in windows(raster):
                empty = raster.is_empty(window)
                pixels, valid = raster.read(window)
                assert pixels.shape == (len(raster.bands), window.height, window.width)
                assert pixels.dtype == raster.dtype
                assert valid.shape == (window.height, window.width)
                assert not (empty and valid.any())
            cells = raster.find_data()
            assert cells is None or max(cells.shape) <= 64
            return f"{raster.height}x{raster.width}x{len(raster.bands)} {raster.dtype}"
    except AutoregError as error:
        sentence = str(error)
    assert sentence
    assert "\n" not in sentence
    return sentence


@pytest.mark.skipif(not EDGE.exists(), reason="needs the folder shared/data/edge")
@pytest.mark.parametrize("path", sorted(EDGE.glob("*.tif")), ids=lambda path: path.stem)
def test_odd_files_are_read_or_refused(path: Path) -> None:
    found = look(path)
    if path.stem in ("hostile_text_named", "hostile_truncated_200bytes", "hostile_zero_bytes"):
        assert "cannot be read as an image" in found
        return
    if path.stem in ("hostile_truncated_half_of_real_cog", "rasterio_corrupt"):
        assert "is damaged" in found
        return
    with georeference_optional(), rasterio.open(path) as dataset:
        if "palette" in found or "pixels of type" in found:
            assert dataset.dtypes[0] not in ("uint16", "int16", "float32")
            return
        assert found.startswith(f"{dataset.height}x{dataset.width}x")
        with RasterReader(path) as raster:
            for window in windows(raster):
                part = window.clipped(raster.height, raster.width)
                place = ((part.row, part.bottom), (part.col, part.right))
                expected = dataset.read(list(range(1, len(raster.bands) + 1)), window=place)
                got, valid = raster.read(part)
                np.testing.assert_array_equal(got, expected)
                masks = dataset.read_masks(window=place)  # of each band, where a raster has one nodata value
                if dataset.dtypes[0] != "float32" and len(raster.bands) == dataset.count:
                    np.testing.assert_array_equal(valid, masks.any(axis=0))


def test_no_damage_is_a_crash_a_hang_or_a_heap_of_memory(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(SIZE_PX), np.arange(SIZE_PX)) + np.arange(3)[:, None, None] * 20
    pixels = (ramp + np.random.default_rng(0).integers(0, 9, ramp.shape)).astype(np.uint8)
    for name, profile in FLAVOURS.items():
        shape = {"driver": "GTiff", "height": SIZE_PX, "width": SIZE_PX, "count": 3, "dtype": "uint8"}
        with georeference_optional(), rasterio.open(tmp_path / name, "w", **shape | profile) as dataset:
            dataset.write(pixels)
    commands = [[sys.executable, "-W", "error", __file__, str(tmp_path), str(number)] for number in range(PROCESSES)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        output, errors = process.communicate(timeout=300)
        # The last line tells which mutation it was.
        assert process.returncode == 0, f"{output[-300:]}\n{errors[-3000:]}"
        assert int(output.split()[-1]) < MEMORY_LIMIT_KIB


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut off the end, flip bits, write absurd numbers into the beginning or end, or put zeros where something was."""
    data: NDArray[np.uint8] = np.frombuffer(content, np.uint8).copy()
    kind = rng.integers(5)
    if kind == 0:
        return data[: rng.integers(1, len(data))].tobytes()
    if kind == 1:
        places = rng.integers(0, len(data), rng.integers(1, 40))
        data[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    elif kind == 2:  # headers are at the beginning
        places = rng.integers(0, min(400, len(data)), rng.integers(1, 6))
        data[places] = rng.integers(0, 256, len(places))
    elif kind == 3:
        absurd = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x10"]
        start = int(rng.integers(0, min(400, len(data)) - 4))
        data[start : start + 4] = np.frombuffer(absurd[rng.integers(len(absurd))], np.uint8)
    else:
        start = int(rng.integers(0, len(data)))
        data[start : start + int(rng.integers(1, 600))] = 0
    return data.tobytes()


def fuzz(folder: Path, number: int) -> None:
    """Look at a share of the mutations, and print each before; at last, the most memory that it took, in KiB."""
    for seed in range(number, MUTATIONS, PROCESSES):
        rng = np.random.default_rng(seed)
        name = list(FLAVOURS)[seed // PROCESSES % len(FLAVOURS)]
        path = folder / f"{number}-{name}"
        path.write_bytes(mutate((folder / name).read_bytes(), rng))
        faulthandler.dump_traceback_later(SECONDS_EACH, exit=True)
        print(seed, name, flush=True)  # noqa: T201
        look(path)
        faulthandler.cancel_dump_traceback_later()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # noqa: T201


if __name__ == "__main__":
    os.environ["GDAL_PAM_ENABLED"] = "NO"  # no file beside a mutation describes the next one
    fuzz(Path(sys.argv[1]), int(sys.argv[2]))

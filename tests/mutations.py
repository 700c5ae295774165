"""Damage of all kinds to small rasters, looked at in processes that are watched: no crash, no hang, no heap of memory."""

import faulthandler
import os
import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.control import GroundControlPoint

from autoreg.raster.gdal import georeference_optional
from forks import FORKS

Look = Callable[[Path], object]
"""Looks at a file that may be damaged; what it raises is a failure."""

PROCESSES = 2
SECONDS_EACH = 30
MEMORY_LIMIT_KIB = 2**20
SIZE_PX = 80

_TILED = {"tiled": True, "blockxsize": 32, "blockysize": 32}
_POINTS = [GroundControlPoint(row, col, 7 + col / 100, 50 - row / 100) for row in (0, SIZE_PX) for col in (0, SIZE_PX)]
FLAVOURS: dict[str, dict[str, Any]] = {
    "strips.tif": {},
    "deflate.tif": {"compress": "deflate", "nodata": 0, **_TILED},
    "lzw.tif": {"compress": "lzw", "interleave": "band", "bigtiff": "yes"},
    "jpeg.tif": {"compress": "jpeg", "photometric": "YCBCR", **_TILED},
    "big.tif": {"endianness": "big", "compress": "zstd", "predictor": 2},
    "a.png": {"driver": "PNG"},
    "a.jpg": {"driver": "JPEG"},
    "placed.tif": {"crs": "EPSG:32633", "transform": Affine(2, 0, 500_000, 0, -2, 5_000_000), "compress": "deflate"},
    "gcps.tif": {"crs": "EPSG:4326", "gcps": _POINTS, **_TILED},
    "alpha.tif": {"count": 4, "compress": "deflate", "photometric": "RGB", **_TILED},
    "mask.tif": {"compress": "deflate", **_TILED},
}
"""How each is written; all have three bands, and some tell where there are data."""


def look_at_mutations(look: Look, folder: Path, mutations: int) -> None:
    """Call ``look`` with ``mutations`` damaged rasters, the same ones each time.

    Args:
        look: a function of a module, or a partial one: it is called in other processes, which take warnings for errors.
        folder: for the rasters.
        mutations: their number.
    """
    write_flavours(folder)
    files = list(FLAVOURS)
    jobs = [
        [(seed, folder / files[seed // PROCESSES % len(files)]) for seed in range(number, mutations, PROCESSES)]
        for number in range(PROCESSES)
    ]
    running = [FORKS.Process(target=_work, args=(look, folder / f"worker{number}", job)) for number, job in enumerate(jobs)]
    for process in running:
        process.start()
    for number, process in enumerate(running):
        process.join()
        said = (folder / f"worker{number}" / "said.txt").read_text()
        # The last line tells which mutation it was.
        assert process.exitcode == 0, said[-4000:]
        assert int(said.split()[-1]) < MEMORY_LIMIT_KIB


def write_flavours(folder: Path) -> None:
    """Write a small raster of each flavour."""
    ramp = np.add.outer(np.arange(SIZE_PX), np.arange(SIZE_PX)) + np.arange(3)[:, None, None] * 20
    pixels = (ramp + np.random.default_rng(0).integers(0, 9, ramp.shape)).astype(np.uint8)
    shown = np.full((SIZE_PX, SIZE_PX), 255, np.uint8)
    shown[10:50, 20:40] = 0
    for name, profile in FLAVOURS.items():
        shape = {"driver": "GTiff", "height": SIZE_PX, "width": SIZE_PX, "count": 3, "dtype": "uint8"}
        with (
            georeference_optional(),
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(folder / name, "w", **shape | profile) as dataset,
        ):
            dataset.write(pixels, (1, 2, 3))
            if dataset.count == 4:
                dataset.write(shown, 4)
            if name == "mask.tif":
                dataset.write_mask(shown)


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


def _work(look: Look, folder: Path, job: list[tuple[int, Path]]) -> None:
    """Look at some mutations, and print each before; at last, the most memory that it took, in KiB."""
    folder.mkdir()
    with (folder / "said.txt").open("wb") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    warnings.simplefilter("error")
    os.environ["GDAL_PAM_ENABLED"] = "NO"  # no file beside a mutation describes the next one
    for seed, original in job:
        path = folder / original.name
        path.write_bytes(mutate(original.read_bytes(), np.random.default_rng(seed)))
        print(seed, original.name, flush=True)  # noqa: T201
        faulthandler.dump_traceback_later(SECONDS_EACH, exit=True, file=2)
        look(path)
        faulthandler.cancel_dump_traceback_later()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # noqa: T201
